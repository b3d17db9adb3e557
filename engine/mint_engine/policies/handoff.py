"""A policy's new weights in its own slot: their memory becomes the slot's, with no digest nor file in between.

Runs on the step thread while none of the policy's rollouts does, so that none ever mixes two revisions.
"""

from mint_engine.adapters.packed import Header, Packed
from mint_engine.residency.slots import Slots
from mint_engine.training.policy import Policy


def hand_off(slots: Slots, slot: int, policy: Policy, label: str) -> None:
    """Put the policy's weights into its slot. `label` names them in the place of a digest, to this engine alone."""
    form = policy.form
    header = Header(slots.dtype, form.base, form.config, form.layout, form.scalings, "", label, head_bytes=0)
    run = policy.round(slots.dtype)
    if not policy.busy:  # work in progress reads them
        policy.rounded = None
    slots.load(slot, Packed(header, run), keep=policy.busy)


def label_of(policy: str, course: int, step: int) -> str:
    """Names what a policy's slot holds after a step of an engine's course of that number.

    No digest looks like it, and no other policy's label; nor is it that of another course, which may have come to
    other weights at this step.
    """
    return f"{policy}@{course}.{step}"

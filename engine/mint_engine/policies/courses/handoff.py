"""Hand-off of a policy's new weights to its own slot: their memory becomes the slot's, without digest or file.

Runs on the step thread while none of the policy's rollouts is running, so that no rollout mixes two revisions.
"""

from mint_engine.adapters.packed import Header, Packed
from mint_engine.residency.slots import Slots
from mint_engine.training.policy import Policy


def hand_off(slots: Slots, slot: int, policy: Policy, label: str) -> None:
    """Put the policy's weights into its slot. `label` names them within this engine, in place of a digest."""
    form = policy.form
    header = Header(slots.dtype, form.base, form.config, form.layout, form.scalings, "", label, head_bytes=0)
    run = policy.round(slots.dtype)
    if not policy.busy:  # otherwise work in progress still reads them
        policy.rounded = None
    slots.load(slot, Packed(header, run), keep=policy.busy)


def label_of(policy: str, course: int, step: int) -> str:
    """Return the label of what a policy's slot holds after step `step` of this engine's course number `course`.

    It differs from every digest, from all other policies' labels, and from those of other courses, which may have
    come to different weights at the same step.
    """
    return f"{policy}@{course}.{step}"

"""Copies of a policy's numbers for saving and publishing, made in bounded parts between which the engine decodes.

The caller ensures that the policy learns nothing meanwhile. Run these generators by `StepThread.parts`.
"""

import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import torch

from mint_contracts.errors import Internal
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.training.policy import Policy, spans
from mint_engine.training.trainer import Trainer

Copying = Generator[None, None, Policy]
Packing = Generator[None, None, Packed]

_VECTORS = ("weights", "exp_avg", "exp_avg_sq", "gradient")


def copying(trainer: Trainer, name: str) -> Copying:
    """Copy a complete policy into host memory, independent of the original. Raises as `Trainer.policy`."""
    policy = trainer.policy(name)
    copies: dict[str, Any] = yield from _copies(trainer, policy, _VECTORS, torch.float32)
    return dataclasses.replace(policy, **copies, rounded=None)


def packing(trainer: Trainer, name: str, dtype: torch.dtype) -> Packing:
    """Copy a policy's current weights as a revision without digests. Raises as `Trainer.policy`."""
    policy = trainer.policy(name)
    form, run = policy.form, (yield from _copies(trainer, policy, ("weights",), dtype))["weights"]
    return Packed(packed_file.outline(form.config, form.base, form.layout, form.scalings, dtype), run)


def _copies(
    trainer: Trainer, policy: Policy, names: Sequence[str], dtype: torch.dtype
) -> Generator[None, None, dict[str, torch.Tensor]]:
    """Copy those of the named vectors [n] that the policy has into host memory."""
    step, elements = policy.step, policy.weights.numel()
    vectors: dict[str, torch.Tensor] = {name: found for name in names if (found := getattr(policy, name)) is not None}
    copies = {name: torch.empty(elements, dtype=dtype) for name in vectors}
    parts = [(name, span) for name, vector in vectors.items() for span in spans(vector)]
    for number, (name, span) in enumerate(parts):
        if number:
            yield
        if trainer.policy(policy.name) is not policy or policy.step != step:
            raise Internal(f"policy {policy.name!r}", "has changed while it was copied")
        copies[name][span] = vectors[name][span]
    return copies

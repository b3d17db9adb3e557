"""What differs between attention layers in how their scores become weights."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Style:
    """How scores become weights."""

    scale: float
    window: int | None  # how many tokens a token sees, itself included; None: all
    cap: float | None  # scores become cap * tanh(score / cap)
    sinks: torch.Tensor | None  # [Q]

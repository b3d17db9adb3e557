"""Adapters with random weights: cheap to make, no two alike, and just strong enough to change what the base says."""

from pathlib import Path
from typing import Final

import torch

from e2e.samples.catalog import Adapter
from e2e.samples.training import fresh_adapter, write

B_STD: Final = 0.05  # PEFT's A gives x a gain of about sqrt(r / 3); W's own is near 1, so the delta is a tenth of it


def write_random(base: Path, adapter: Adapter, folder: Path) -> None:
    """Write `adapter` to `folder` with PEFT's initial A and a normal B (PEFT's own is zero), both from its seed."""
    model = fresh_adapter(base, adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=B_STD)
    write(model, adapter, folder)

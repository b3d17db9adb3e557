"""An engine of several ranks answers as one of a single rank does: real processes, one memory in which they meet."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.parallel.playing import TURNS, built, play
from tests.engine.running import packed, save_adapter, save_base

SHAPES: dict[str, dict[str, Any]] = {
    "uneven heads": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32},
    "one key/value head for both": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32},
}


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance"),
    [
        ("uneven heads", "float32", 1e-5),
        ("uneven heads", "bfloat16", 0.04),
        ("one key/value head for both", "float32", 1e-5),
    ],
)
def test_two_ranks_compute_what_one_does(shape: str, dtype: str, tolerance: float, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", hidden_size=96, **SHAPES[shape])
    adapters = [save_adapter(base, tmp_path / f"r{rank}", rank=rank) for rank in (4, 9)]
    found = []
    for ranks in (1, 2):
        with built(base, dtype, ranks) as (slots, generation):
            assert generation.compute.startswith("lean")
            vocabulary = generation._forward.base.vocab_size
            for slot, folder in enumerate(adapters):
                slots.load(slot, packed(folder, slots))
            mixed = play(generation, TURNS, vocabulary)
            slots.load(0, packed(adapters[1], slots))  # in place of another
            slots.clear(1)
            found.append(torch.cat([mixed, play(generation, TURNS, vocabulary)]))
    one, two = found
    assert (two - one).norm() / one.norm() < tolerance
    if dtype == "float32":
        assert torch.equal(two.argmax(-1), one.argmax(-1))

"""A rank's part of a base, read from its files alone, equals what remains of the whole base after cutting."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.base import load_base
from mint_engine.parallel.part import Part, parts_of
from mint_engine.parallel.shares import Dimensions, share_out
from tests.engine.families import CPU, MOE
from tests.engine.saved_families import BASES, save_base, weights

SHARE = share_out(Dimensions(heads=4, kv_heads=2, vocabulary=96, experts=MOE["num_experts"]), 2)[1]
# Families whose published files use other names.
NAMED_OTHERWISE = {
    "mixtral": "model.layers.1.block_sparse_moe.experts.3.w1.weight",
    "gemma3_seeing": "language_model.model.layers.1.self_attn.q_proj.weight",
}


@pytest.mark.parametrize("family", BASES)
def test_a_part_is_what_cutting_leaves(family: str, tmp_path: Path) -> None:
    save_base(family, tmp_path)
    if family in NAMED_OTHERWISE:
        assert NAMED_OTHERWISE[family] in names_in(tmp_path)
    for rank in range(2):
        whole = load_base(tmp_path, torch.float32, CPU)
        cut = Part(rank, 2)
        cut.cut(whole.model)
        part = Part(rank, 2)
        read = load_base(tmp_path, torch.float32, CPU, part)
        assert part.share == cut.share
        assert part.modules == cut.modules
        assert read.architecture == whole.architecture
        expected, found = weights(whole), weights(read)
        assert found.keys() == expected.keys()
        for name, each in expected.items():
            assert torch.equal(found[name], each), name


def names_in(folder: Path) -> set[str]:
    [file] = folder.glob("*.safetensors")
    return set(load_file(file))


@pytest.mark.parametrize(
    ("key", "shape", "parts"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (64, 48), [(slice(32, 64), slice(None))]),
        ("model.layers.0.self_attn.k_proj.bias", (32,), [(slice(16, 32),)]),
        ("model.layers.0.self_attn.qkv_proj.bias", (64,), [(slice(16, 32),), (slice(40, 48),), (slice(56, 64),)]),
        (
            "model.layers.0.mlp.gate_up_proj.weight",
            (128, 48),
            [(slice(32, 64), slice(None)), (slice(96, 128), slice(None))],
        ),
        ("model.layers.0.self_attn.o_proj.weight", (48, 64), [(slice(None), slice(32, 64))]),
        ("model.layers.0.self_attn.o_proj.bias", (48,), []),
        ("model.layers.0.self_attn.sinks", (4,), [(slice(2, 4),)]),
        ("model.layers.0.mlp.experts.2.up_proj.weight", (40, 48), []),
        ("model.layers.0.mlp.experts.3.up_proj.weight", (40, 48), [()]),
        ("model.layers.0.mlp.experts.gate_up_proj", (6, 80, 48), [(slice(3, 6),)]),
        ("model.layers.0.input_layernorm.weight", (48,), [()]),
    ],
)
def test_only_a_ranks_part_of_a_tensor_is_read(
    key: str, shape: tuple[int, ...], parts: list[tuple[slice, ...]]
) -> None:
    assert parts_of(key, lambda: shape, SHARE) == parts


def test_an_expert_that_is_missing_is_missed_by_the_rank_that_would_hold_it(tmp_path: Path) -> None:
    save_base("qwen3_moe", tmp_path)
    [file] = tmp_path.glob("*.safetensors")
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.experts.4.down_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    load_base(tmp_path, torch.float32, CPU, Part(0, 2))
    with pytest.raises(UnsupportedBase, match=r"model\.layers\.1\.mlp\.experts\.down_proj of \[2, "):
        load_base(tmp_path, torch.float32, CPU, Part(1, 2))

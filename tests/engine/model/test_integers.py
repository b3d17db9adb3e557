"""Bases packed in whole numbers: the engine holds what a naive reference makes of their files."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mint_contracts.errors import NonFiniteWeights, UnsupportedBase
from mint_contracts.quantisation import Integers, read_quantisation
from mint_engine.model.base import load_base
from mint_engine.model.dequantise import unpack_words
from mint_engine.model.quantised import dequantised
from mint_engine.model.stored import Stored, open_tensors
from mint_engine.parallel.part import Part
from tests.engine.families import CPU
from tests.engine.integers import (
    KIMI_IGNORES,
    PACKED,
    Layout,
    pack,
    packed_config,
    packed_tensors,
    quantise_integers,
    save_packed,
)
from tests.engine.made import edit_base
from tests.engine.quantised import edit_tensors, tensors_of
from tests.engine.read_bases import DTYPES, assert_equal, assert_read_alike
from tests.engine.saved_families import save_base

# What compressed-tensors 0.20 packs: numbers, bits, words.
OWN = [
    ([[*range(-8, 8)], [*range(7, -9, -1)]], 4, [[1985229328, -19088744], [-1985229329, 19088743]]),
    ([[-128, -1, 0, 127, 5, -5, 64, -64]], 8, [[-8356096, 1086356357]]),
    ([[-8, 0, 3, -8, 7, 1, 4, -2, 0]], 4, [[1822362496, 8]]),  # zero points of nine rows
]


# Families whose files each name experts, linears and layers differently.
NAMED = [
    ("kimi", "deepseek_v3"),
    ("w4a16", "deepseek_v3"),
    ("w4a16_asymmetric", "mixtral"),
    ("w8a16", "gemma3_seeing"),
]


def told(layout: Layout) -> Integers:
    found = read_quantisation({"quantization_config": layout.told}, "base")
    assert isinstance(found, Integers)
    return found


@pytest.mark.parametrize(("numbers", "bits", "words"), OWN)
def test_words_are_those_of_compressed_tensors(numbers: list[list[int]], bits: int, words: list[list[int]]) -> None:
    values = torch.tensor(numbers)
    assert pack(values, bits).tolist() == words
    assert torch.equal(unpack_words(torch.tensor(words, dtype=torch.int32), bits)[:, : values.shape[1]], values)


def opened(layout: Layout, folder: Path, dtype: torch.dtype, inputs: int = 96) -> tuple[Stored, torch.Tensor]:
    """A weight of 150 rows as the engine reads it, and its expected value."""
    numbers = quantise_integers(torch.randn(150, inputs, generator=torch.Generator().manual_seed(4)), layout)
    more = {"a.input_scale": torch.tensor(0.5), "norm.weight": torch.ones(3)}
    save_file(packed_tensors("a", numbers, layout) | more, folder / "a.safetensors")
    read = dequantised(open_tensors([str(folder / "a.safetensors")]), told(layout), dtype, "base")
    assert sorted(read) == ["a.weight", "norm.weight"]
    assert read["a.weight"].get_shape() == [150, inputs]
    return read["a.weight"], numbers.naive.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [*PACKED.values(), Layout(4, "group", 36)], ids=[*PACKED, "no whole groups"])
@pytest.mark.parametrize("inputs", [96, 91], ids=["whole words", "padded"])
def test_parts_are_the_naive_reference(layout: Layout, dtype: torch.dtype, inputs: int, tmp_path: Path) -> None:
    """Parts may begin and end within a word, a group or a word of zero points, or at a border."""
    read, expected = opened(layout, tmp_path, dtype, inputs)
    assert torch.equal(read[...], expected)
    assert torch.equal(read[3:140,], expected[3:140])
    for (top, bottom), (left, right) in itertools.product(
        [(0, 150), (127, 130), (8, 16), (149, 150)],
        itertools.combinations((0, 1, 4, 8, 15, 36, 61, inputs - 1, inputs), 2),
    ):
        assert torch.equal(read[top:bottom, left:right], expected[top:bottom, left:right])


def test_packed_weights_are_close_to_the_original(tmp_path: Path) -> None:
    """The reference itself is accurate."""
    weight = torch.randn(150, 96, generator=torch.Generator().manual_seed(4))
    for name, layout in PACKED.items():
        error = (opened(layout, tmp_path, torch.float32)[0][...] - weight).abs().max()
        assert error < (0.6 if layout.bits == 4 else 0.05), name


@pytest.mark.parametrize(
    ("layout", "family"),
    [*((each, "qwen3") for each in PACKED if each != "kimi"), *NAMED],
)
def test_a_base_as_it_is_published(layout: str, family: str, tmp_path: Path) -> None:
    """Weights and logits are equal when loaded whole, by each rank, and streamed layer by layer by the first."""
    packed, plain = save_packed(save_base(family, tmp_path / "plain"), tmp_path, PACKED[layout])
    assert_read_alike(packed, plain)


@pytest.mark.parametrize("layout", ["w4a16_asymmetric", "w8a16"])
def test_fused_linears(layout: str, tmp_path: Path) -> None:
    """Scales and zero points go with their rows, whichever runs of rows make up a rank's part."""
    packed, plain = save_packed(save_base("phi3", tmp_path / "plain"), tmp_path, PACKED[layout])
    for rank in range(2):
        assert_equal(*(load_base(each, torch.bfloat16, CPU, Part(rank, 2)) for each in (packed, plain)))


def test_kimi_k2_thinking(tmp_path: Path) -> None:
    """Only routed experts are packed, and its config.json names its own model type."""
    packed, plain = save_packed(save_base("kimi_k2", tmp_path / "plain"), tmp_path, PACKED["kimi"])
    edit_base(packed, model_type="kimi_k2", auto_map={"AutoConfig": "configuration_deepseek.DeepseekV3Config"})
    held = {name.split(".")[3] for name in tensors_of(packed) if name.endswith(".weight_packed")}
    assert held == {"mlp"}
    assert_equal(*(load_base(each, torch.bfloat16, CPU) for each in (packed, plain)))


def test_a_rank_reads_its_own_share_alone(tmp_path: Path) -> None:
    """Rank 0 does not see what is broken in the rows and experts of rank 1."""
    plain = save_base("deepseek_v3", tmp_path / "plain")
    packed, _ = save_packed(plain, tmp_path, PACKED["w4a16"])
    tensors = tensors_of(packed)
    for name, row in (("self_attn.q_b_proj", 40), ("mlp.experts.7.up_proj", 0)):
        key = f"model.layers.1.{name}.weight_scale"
        broken = tensors[key].clone()
        broken[row] = torch.nan
        edit_tensors(packed, {key: broken})
        load_base(packed, torch.bfloat16, CPU, Part(0, 2))
        with pytest.raises(NonFiniteWeights, match=r"model\.layers\.1"):
            load_base(packed, torch.bfloat16, CPU, Part(1, 2))
        edit_tensors(packed, {key: tensors[key]})


O_PROJ = "model.layers.1.self_attn.o_proj"  # [48, 64]
WORDS, SCALE, SHAPE, ZERO, ORDER = (
    f"{O_PROJ}.weight_{each}" for each in ("packed", "scale", "shape", "zero_point", "g_idx")
)


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({SCALE: None}, f"lacks {SCALE}, which its packed weight needs"),
        ({SHAPE: None}, f"lacks {SHAPE}, which its packed weight needs"),
        ({ZERO: None}, f"lacks {ZERO}, which its packed weight needs"),
        ({ORDER: None}, f"lacks {ORDER}, which its packed weight needs"),
        ({WORDS: None}, rf"has {O_PROJ}\.weight_\w+, but not the packed weight that it belongs to"),
        ({WORDS: ints(48, 8).long()}, rf"has {WORDS} of I64 \[48, 8\], which is not a matrix of words of 32 bits"),
        ({WORDS: ints(48)}, rf"has {WORDS} of I32 \[48\], which is not a matrix of words"),
        ({WORDS: ints(0, 8)}, rf"has {WORDS} of I32 \[0, 8\], which is not a matrix of words"),
        ({WORDS: ints(2, 48, 8)}, rf"has {WORDS} of I32 \[2, 48, 8\], many experts in one packed tensor"),
        ({WORDS: ints(48, 7)}, rf"\[48, 7\], which {SCALE} of BF16 \[48, 8\] does not fit, .* every 1 x 8"),
        ({SCALE: torch.ones(48, 1)}, rf"has {WORDS} .*, which {SCALE} of F32 \[48, 1\] does not fit, in numbers of"),
        ({SCALE: ints(48, 8)}, rf"which {SCALE} of I32 \[48, 8\] does not fit"),
        ({SHAPE: ints(3)}, rf"which {SHAPE} of I32 \[3\] does not fit"),
        ({SHAPE: torch.tensor([48.0, 64.0])}, rf"which {SHAPE} of F32 \[2\] does not fit"),
        ({SHAPE: torch.tensor([48, 56])}, rf"has {SHAPE} that says \[48, 56\], but words for \[48, 64\]"),
        ({SHAPE: torch.tensor([48, 61])}, rf"has {SHAPE} that says \[48, 61\], which weight_g_idx does not fit"),
        ({SHAPE: torch.tensor([1 << 62, -1])}, rf"has {SHAPE} that says \[4611686018427387904, -1\], but words for"),
        ({ZERO: ints(48, 8)}, rf"which {ZERO} of I32 \[48, 8\] does not fit"),
        ({ZERO: ints(6, 8).byte()}, rf"which {ZERO} of U8 \[6, 8\] does not fit"),
        ({ORDER: ints(56)}, rf"which {ORDER} of I32 \[56\] does not fit"),
        ({ORDER: ints(63)}, rf"has {SHAPE} that says \[48, 64\], which weight_g_idx does not fit"),
        ({ORDER: ints(64) - 1}, f"has {ORDER} that names groups other than 0 to 7"),
        ({ORDER: ints(64) + 8}, f"has {ORDER} that names groups other than 0 to 7"),
        ({f"{O_PROJ}.weight": torch.ones(48, 64)}, rf"has {O_PROJ}\.weight, which is unknown for packed weights"),
        ({f"{O_PROJ}.weight_scale_2": torch.ones(1)}, f"has {SCALE}_2, which is unknown for packed weights"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes: dict[str, torch.Tensor | None], says: str, tmp_path: Path) -> None:
    packed, _ = save_packed(save_base("qwen3", tmp_path / "plain"), tmp_path, PACKED["w4a16_reordered"])
    edit_tensors(packed, changes)
    for part in (None, Part(1, 2)):
        with pytest.raises(UnsupportedBase, match=f"base {packed}: .*{says}.*; .*give .*the model in bfloat16"):
            load_base(packed, torch.bfloat16, CPU, part)


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ("w4a16_asymmetric", {"symmetric": True}),
        ("w4a16_reordered", {"symmetric": False, "actorder": "weight"}),
        ("w4a16_reordered", {"symmetric": False, "actorder": None}),
    ],
)
def test_parts_of_a_weight_that_are_not_told_of_are_not_passed_over(
    layout: str, told: dict[str, Any], tmp_path: Path
) -> None:
    """Zero points and orders change what numbers stand for."""
    packed, _ = save_packed(save_base("qwen3", tmp_path / "plain"), tmp_path, PACKED[layout])
    edit_base(packed, quantization_config=packed_config(strategy="group", group_size=8, **told))
    with pytest.raises(UnsupportedBase, match="which is unknown for packed weights of this kind"):
        load_base(packed, torch.bfloat16, CPU)


def test_an_expert_unlike_the_others_is_named(tmp_path: Path) -> None:
    """Its parts fit each other but not the other experts."""
    packed, _ = save_packed(save_base("deepseek_v3", tmp_path / "plain"), tmp_path, PACKED["kimi"])
    path = "model.layers.1.mlp.experts.5.up_proj"
    other = quantise_integers(torch.ones(32, 48), PACKED["kimi"])
    edit_tensors(packed, dict(packed_tensors(path, other, PACKED["kimi"])))
    for part in (None, Part(1, 2)):
        with pytest.raises(
            UnsupportedBase, match=rf"experts\.0\.up_proj.weight_packed of \[40, 6\], but {path}.* \[32, 6\]"
        ):
            load_base(packed, torch.bfloat16, CPU, part)


def test_scales_are_those_of_the_shape_that_is_told(tmp_path: Path) -> None:
    """Five words hold 33 to 40 columns, so whether scales fit can only be checked with the shape."""
    layout, rows = Layout(4, "group", 36), torch.randn(8, 40, generator=torch.Generator().manual_seed(1))
    for inputs, groups in ((36, 1), (37, 2)):
        numbers = quantise_integers(rows[:, :inputs], layout)
        assert numbers.scales.shape == (8, groups)
        tensors, file = packed_tensors("a", numbers, layout), tmp_path / f"{inputs}.safetensors"
        save_file(tensors, file)
        read = dequantised(open_tensors([str(file)]), told(layout), torch.float32, "base")
        assert torch.equal(read["a.weight"][...], numbers.naive)
        save_file(tensors | {"a.weight_shape": torch.tensor([8, 73 - inputs])}, file)
        read = dequantised(open_tensors([str(file)]), told(layout), torch.float32, "base")
        with pytest.raises(UnsupportedBase, match=rf"says \[8, {73 - inputs}\], which weight_scale does not fit;"):
            read["a.weight"][...]


GROUP: dict[str, Any] = {"strategy": "group", "group_size": 32}
FLOAT8: dict[str, Any] = {"type": "float", "num_bits": 8, "strategy": "channel"}


def many(*weights: dict[str, Any]) -> dict[str, Any]:
    """A quantization_config with several groups of linears."""
    each = [packed_config(**one)["config_groups"]["group_0"] for one in weights]
    return packed_config() | {"config_groups": {f"group_{at}": one for at, one in enumerate(each)}}


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (
            packed_config(**GROUP) | {"format": "marlin-24"},
            "int of 4 bits with a scale a group as 'marlin-24', which",
        ),
        (packed_config(**GROUP) | {"format": None}, "int of 4 bits with a scale a group as None, which"),
        (packed_config(strategy="channel", num_bits=8) | {"format": "int-quantized"}, "as 'int-quantized', which"),
        (packed_config(**GROUP) | {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        (packed_config(**GROUP | {"num_bits": 3}), "int of 3 bits with a scale a group as 'pack-quantized', which"),
        (packed_config(**GROUP | {"group_size": 0}), "int of 4 bits with a scale a group as"),
        (packed_config(**GROUP | {"group_size": -1}), "int of 4 bits with a scale a group as"),
        (packed_config(strategy="block", block_structure=[128, 128]), "int of 4 bits with a scale a block as"),
        (many(GROUP, GROUP | {"num_bits": 8}), "int of 4 bits .* and int of 8 bits"),
        (many(GROUP, FLOAT8), "float of 8 bits with a scale a channel and int of 4 bits"),
        (packed_config(**GROUP) | {"ignore": "lm_head"}, "not known .*ignore"),
        ({}, r"packed weights, .*weight_packed among them, but no quantization_config"),
    ],
)
def test_what_is_not_read_says_what_to_give(told: dict[str, Any], says: str, tmp_path: Path) -> None:
    packed, _ = save_packed(save_base("qwen3", tmp_path / "plain"), tmp_path, PACKED["w4a16"])
    edit_base(packed, quantization_config=told)
    with pytest.raises(UnsupportedBase, match=f"base {packed}: .*{says}"):
        load_base(packed, torch.bfloat16, CPU)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Integers(4, 1, 32)),
        ({"group_size": 128, "actorder": "weight"}, Integers(4, 1, 128)),
        ({"actorder": "static"}, Integers(4, 1, 32)),
        ({"actorder": "group"}, Integers(4, 1, 32, reordered=True)),
        ({"actorder": True, "symmetric": False}, Integers(4, 1, 32, symmetric=False, reordered=True)),
        ({"strategy": "channel", "group_size": None, "num_bits": 8}, Integers(8, 1, None)),
        ({"strategy": "tensor", "group_size": None, "num_bits": 8}, Integers(8, None, None)),
    ],
)
def test_what_a_config_says(changes: dict[str, Any], expected: Integers) -> None:
    """The format may be given for all groups, or for each."""
    said = packed_config(*KIMI_IGNORES, **GROUP | changes)
    each = {"group_0": said["config_groups"]["group_0"] | {"format": "pack-quantized"}}
    for config in (said, said | {"format": "mixed-precision", "config_groups": each}):
        found = read_quantisation({"text_config": {"quantization_config": config}}, "base")
        assert found == expected

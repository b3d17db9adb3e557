"""Logits of a base that is never whole in memory equal the whole base's bit for bit; only a part of it stays."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel

from mint_contracts.errors import MintError, NonFiniteWeights, UnsupportedBase
from mint_engine.model.base import load_base
from mint_engine.model.modules import layers_of
from mint_engine.model.reference import find_reference, load_part
from mint_engine.parallel.part import Part
from tests.engine.families import CPU, FAMILIES
from tests.engine.quantised import edit_tensors, save_float8, save_mxfp4, tensors_of
from tests.engine.saved_families import save_base, weights


def assert_same(path: Path, dtype: torch.dtype) -> None:
    expected = find_reference(load_base(path, dtype, CPU))
    for rank in range(2):
        part, same = Part(rank, 2), Part(rank, 2)
        base, found = load_part(path, dtype, part)
        assert torch.equal(found.logits, expected.logits)
        assert found.moved == expected.moved
        held, read = weights(base), weights(load_base(path, dtype, CPU, same))
        assert (part.share, part.modules) == (same.share, same.modules)
        assert held.keys() == read.keys()
        for name, each in read.items():
            assert torch.equal(held[name], each), name
            assert held[name].dtype == each.dtype
        assert not any(each.requires_grad or each.is_inference() for each in base.model.parameters())


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.bfloat16) for family in (*FAMILIES, "mixtral")),  # its files name experts in another way
        *((family, torch.float32) for family in ("llama", "gpt_oss", "deepseek_v32")),
    ],
)
def test_every_family(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    assert_same(save_base(family, tmp_path), dtype)


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_untied(family: str, tied: bool, tmp_path: Path) -> None:
    assert_same(save_base(family, tmp_path, tie_word_embeddings=tied), torch.float32)


@pytest.mark.parametrize("family", ["qwen3", "deepseek_v3", "glm_5", "gpt_oss"])
def test_quantised(family: str, tmp_path: Path) -> None:
    plain = save_base(family, tmp_path / "plain", **({"hidden_size": 64} if family == "gpt_oss" else {}))
    quantised, _ = save_mxfp4(plain, tmp_path) if family == "gpt_oss" else save_float8(plain, tmp_path)
    assert_same(quantised, torch.bfloat16)


@contextmanager
def watched() -> Iterator[list[tuple[PreTrainedModel, list[int]]]]:
    """At every call of a module within a model: the model, and the bytes that each of its layers then holds."""
    models: list[PreTrainedModel] = []
    seen: list[tuple[PreTrainedModel, list[int]]] = []

    def look(module: nn.Module, _: Any) -> None:
        if isinstance(module, PreTrainedModel) and not models:
            models.append(module)
        seen.append((models[0], [real_bytes(layer) for _, layer in layers_of(models[0])]))

    hook = register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        hook.remove()


def real_bytes(module: nn.Module) -> int:
    return sum(each.nbytes for each in module.parameters() if not each.is_meta)


@pytest.mark.parametrize("family", ["smollm2", "qwen3_moe", "deepseek_v32", "gpt_oss"])
def test_no_more_than_one_layer_is_whole_at_a_time(family: str, tmp_path: Path) -> None:
    save_base(family, tmp_path)
    whole = [real_bytes(layer) for _, layer in layers_of(load_base(tmp_path, torch.float32, CPU).model)]
    with watched() as seen:
        base, _ = load_part(tmp_path, torch.float32, Part(0, 2))
    parts = [real_bytes(layer) for _, layer in layers_of(base.model)]
    steps = {tuple(held) for _, held in seen}
    assert steps == {
        (0,) * len(whole),
        *((*parts[:at], 0, *(0,) * (len(whole) - at - 1)) for at in range(len(whole))),
        *((*parts[:at], whole[at], *(0,) * (len(whole) - at - 1)) for at in range(len(whole))),
        tuple(parts),
    }


NAN = torch.full((), torch.nan)
UP = "model.layers.1.mlp.experts.5.up_proj.weight"
NORM = "model.layers.2.input_layernorm.weight"


@pytest.mark.parametrize(
    ("name", "change", "error", "says"),
    [
        (UP, lambda each: each + NAN, NonFiniteWeights, r"NaN or infinity in model\.layers\.1\.mlp\.experts"),
        (NORM, lambda each: each + NAN, NonFiniteWeights, rf"NaN or infinity in {NORM}"),
        (NORM, lambda _: None, UnsupportedBase, f"lacks 1 weights, the first {NORM}"),
        (NORM, lambda each: each[:-1].clone(), UnsupportedBase, rf"other shapes .* {NORM} of \[47\], not \[48\]"),
        (UP, lambda _: None, UnsupportedBase, r"layers\.1\.mlp\.experts"),
        ("model.norm.weight", lambda _: None, UnsupportedBase, r"lacks 1 weights, the first model\.norm\.weight"),
        ("lm_head.weight", lambda each: each + NAN, NonFiniteWeights, r"in lm_head\.weight"),
    ],
)
def test_an_error_in_any_ranks_part_is_named(
    name: str, change: Any, error: type[MintError], says: str, tmp_path: Path
) -> None:
    save_base("qwen3_moe", tmp_path)
    edit_tensors(tmp_path, {name: change(tensors_of(tmp_path)[name])})
    with pytest.raises(error, match=rf"base {tmp_path}: .*{says}"):
        load_part(tmp_path, torch.float32, Part(0, 2))


def test_a_base_that_cannot_be_split_is_refused_before_it_is_read(tmp_path: Path) -> None:
    save_base("qwen3_moe", tmp_path)
    with pytest.raises(UnsupportedBase, match="tensorParallelSize: is 8"), watched() as seen:
        load_part(tmp_path, torch.float32, Part(0, 8))
    assert not seen

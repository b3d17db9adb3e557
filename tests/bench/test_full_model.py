"""The handoff benchmark's peer: merging is correct, and its bases have the right shapes."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from tests.bench.adapters import WEIGHTS, write_config, write_weights
from tests.bench.merging import merge
from tests.bench.models import nbytes, qwen3_4b, qwen3_30b_a3b
from tests.bench.shapes import expert_shapes, moe_30b_a3b

TINY = Qwen3MoeConfig(  # type: ignore[call-arg]
    hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, vocab_size=64, num_experts=4, num_experts_per_tok=2,
)  # fmt: skip


@pytest.mark.parametrize("rank", [1, 3])
def test_merging_adds_each_linears_product_to_its_weights(tmp_path: Path, rank: int) -> None:
    TINY.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(TINY).bfloat16()  # type: ignore[no-untyped-call]
    before = {name: each.clone() for name, each in model.state_dict().items()}
    shapes = expert_shapes(tmp_path)
    assert len(shapes) == 2 * (4 + 3 * 4)
    write_weights(tmp_path, shapes, rank, seed=1)
    write_config(tmp_path, shapes, rank, alpha=200.0)
    merge(model, tmp_path)
    after, tensors = model.state_dict(), load_file(tmp_path / WEIGHTS)
    for path in shapes:
        a, b = (tensors[f"base_model.model.{path}.lora_{half}.weight"].float() for half in "AB")
        grown = _weight(after, path).float() - _weight(before, path).float()
        assert grown.abs().mean() > 0.01
        torch.testing.assert_close(grown, 200.0 / rank * b @ a, rtol=0.02, atol=2e-3)
    untouched = [name for name in before if "norm" in name or "embed" in name or ".gate." in name]
    assert untouched
    assert all(torch.equal(before[name], after[name]) for name in untouched)


def test_the_bases_have_their_models_sizes() -> None:
    assert nbytes(qwen3_4b()) / 2 == pytest.approx(4.02e9, rel=0.01)
    assert nbytes(qwen3_30b_a3b()) / 2 == pytest.approx(30.5e9, rel=0.01)


def test_a_slice_takes_the_same_adapters_layer_for_layer(tmp_path: Path) -> None:
    qwen3_30b_a3b(layers=2).save_pretrained(tmp_path)
    whole = moe_30b_a3b()
    assert expert_shapes(tmp_path) == {path: whole[path] for path in whole if path.split(".")[2] in {"0", "1"}}


def _weight(state: dict[str, torch.Tensor], path: str) -> torch.Tensor:
    """Return a linear's weights [out, in]; an expert's are taken from its stack."""
    if ".experts." not in path:
        return state[f"{path}.weight"]
    layer, _, rest = path.partition(".experts.")
    number, _, which = rest.partition(".")
    if which == "down_proj":
        return state[f"{layer}.experts.down_proj"][int(number)]
    gate, up = state[f"{layer}.experts.gate_up_proj"][int(number)].chunk(2)
    return gate if which == "gate_proj" else up

"""Latent attention's two ways, absorbed and expanded, against plain attention over merged keys and values."""

import pytest
import torch

from mint_engine.model.latent_sizes import LatentSizes
from mint_engine.model.modules import find_modules
from mint_engine.model.selection import choose
from mint_engine.model.span import Span
from mint_engine.residency.slots import NO_SLOT
from tests.engine.families import FAMILIES, fill, make_forward, make_model, merge, plain_logits

TOKENS = list(range(2, 62))


@pytest.mark.parametrize("way", [True, False], ids=["absorbed", "expanded"])
@pytest.mark.parametrize("slot", [0, NO_SLOT])
@pytest.mark.parametrize("name", ["deepseek_v3", "deepseek_v32"])
def test_both_ways_equal_the_model(name: str, slot: int, way: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = make_forward(FAMILIES[name])
    fill(forward.slots, 0, 5)
    monkeypatch.setattr(LatentSizes, "absorbs", lambda sizes, rows: way)
    found = [
        forward.run(TOKENS[start:stop], [Span(0, stop - start, start, [3, 1, 2, 4], slot)], range(stop - start))
        for start, stop in ((0, 35), (35, 60))
    ]
    model = make_model(FAMILIES[name])
    reference = model if slot == NO_SLOT else merge(model, forward.slots, slot)
    torch.testing.assert_close(torch.cat(found), plain_logits(reference, TOKENS), rtol=1e-3, atol=2e-3)


def test_short_chunks_absorb_and_long_ones_expand() -> None:
    """By the number of operations: for DeepSeek-V3's sizes the two ways cost the same at 170.7 rows."""
    sizes = LatentSizes(latent=512, rotated=64, expanded=256)
    assert sizes.absorbs(170)
    assert not sizes.absorbs(171)


def test_low_rank_projections_and_experts_are_offered() -> None:
    """MLA's projections, shared experts and every routed expert, but not the router."""
    modules = find_modules(make_model(FAMILIES["deepseek_v32"]))
    leaves = {path.removeprefix("model.layers.2.") for path in modules if path.startswith("model.layers.2.")}
    attention = {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}
    assert {f"self_attn.{name}" for name in attention} <= leaves
    assert {f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")} <= leaves
    assert {f"mlp.experts.{name}_proj" for name in ("gate", "up", "down")} <= leaves
    assert not any(path.endswith("mlp.gate") for path in modules)
    assert modules["model.layers.2.mlp.experts.up_proj"].experts == 8


def test_ties_between_tokens_go_to_the_earlier_ones() -> None:
    scores = torch.tensor([[1.0, 0.0, 0.0, 2.0, 0.0, 9.0]])
    visible = torch.tensor([[True, True, True, True, True, False]])
    assert choose(scores, visible, 3).tolist() == [[True, True, False, True, False, False]]
    assert choose(scores, visible, 6).tolist() == visible.tolist()
    draw = torch.Generator().manual_seed(1)
    scores, visible = torch.randint(0, 4, (50, 30), generator=draw).float(), torch.rand(50, 30, generator=draw) < 0.7
    for count in (1, 7, 29, 30, 40):
        best = scores.masked_fill(~visible, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
        expected = torch.zeros_like(visible).scatter_(-1, best[:, :count], True) & visible
        assert torch.equal(choose(scores, visible, count), expected)

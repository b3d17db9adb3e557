"""Attention and routed experts of examples longer than a piece: the same results as at once, in less memory."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedConfig

from mint_contracts.cuts import Cut
from mint_engine.model.attention import attend_rows
from mint_engine.model.modules import find_modules
from mint_engine.training import attend, routed
from mint_engine.training.batch import Batch, Part, Segment
from mint_engine.training.delta import Current
from mint_engine.training.pieces import Tree
from tests.engine.families import FAMILIES, make_model

ROWS = 16  # rows computed together in these tests
TREES = (Tree(0, 23, (70, 1, 40)), Tree(134, 9, (3,)), Tree(146, 100, ()))
HEADS, KEYS, SIZE = 4, 2, 8


class _Largest(TorchDispatchMode):
    """Records the element count of the largest tensor created meanwhile, except views of the existing choices."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self._there = 0, {each.data_ptr() for each in CHOICES if each is not None}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = func(*args, **(kwargs or {}))
        for each in given if isinstance(given, tuple | list) else (given,):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in self._there:
                self.found = max(self.found, each.untyped_storage().nbytes() // each.itemsize)
        return given


def _run(options: dict[str, object]) -> tuple[list[torch.Tensor], int]:
    """Return attention's output over all trees, its gradients, and the size of the largest tensor on the way."""
    rows = TREES[-1].row + TREES[-1].rows
    chance = torch.Generator().manual_seed(7)
    query, key, value = (
        torch.randn(1, heads, rows, SIZE, generator=chance, requires_grad=True) for heads in (HEADS, KEYS, KEYS)
    )
    slopes = torch.randn(1, rows, HEADS, SIZE, generator=chance)
    with _Largest() as largest:
        out, _ = attend.attend(SimpleNamespace(is_causal=True), query, key, value, None, trees=TREES, **options)  # type: ignore[arg-type]
        gradients = torch.autograd.grad(out, (query, key, value), slopes)
    return [out.detach(), *gradients], largest.found


def _choice(tree: Tree) -> torch.Tensor:
    """Return a mask that chooses every row's own position and about 30% of all others."""
    chance = torch.Generator().manual_seed(tree.row)
    return (torch.rand(tree.rows, tree.rows, generator=chance) < 0.3) | torch.eye(tree.rows, dtype=torch.bool)


CHOICES = (_choice(TREES[0]), None, _choice(TREES[2]))


@pytest.mark.parametrize("options", [
    {},
    {"sliding_window": 11},
    {"softcap": 5.0},
    {"s_aux": nn.Parameter(torch.linspace(-1, 1, HEADS), requires_grad=False), "sliding_window": 30},
    {"indices": CHOICES},
], ids=["plain", "window", "cap", "sinks", "chosen"])  # fmt: skip
def test_rows_that_are_computed_some_at_a_time_get_what_all_at_once_give(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, most = _run(options)
    monkeypatch.setattr(attend, "PIECE_ROWS", ROWS)
    cut, least = _run(options)
    for ours, theirs in zip(cut, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    longest = max(tree.rows for tree in TREES)
    assert most >= longest**2, "in one go there is a number for each two rows"
    rows = TREES[-1].row + TREES[-1].rows
    assert least <= max(HEADS * ROWS * longest, HEADS * rows * SIZE)


@pytest.mark.parametrize("options", [
    {"softcap": 5.0},
    {"s_aux": nn.Parameter(torch.linspace(-1, 1, HEADS), requires_grad=False), "sliding_window": 30},
], ids=["cap", "sinks"])  # fmt: skip
def test_scores_that_are_in_memory_are_of_few_rows_with_long_pasts(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, most = _run(options)
    monkeypatch.setattr(attend, "SCORES", HEADS * 6 * TREES[0].rows)
    cut, least = _run(options)
    for ours, theirs in zip(cut, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert most >= HEADS * TREES[0].rows ** 2
    rows = TREES[-1].row + TREES[-1].rows
    assert least <= HEADS * max(6 * (TREES[0].rows + 1), rows * SIZE), "with the sinks' scores, or all outputs"


def test_rows_that_slide_are_computed_with_what_they_can_see_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    window, looked, plain = 11, dict[int, int](), attend_rows

    def count(rows: torch.Tensor, keys: torch.Tensor, *rest: Any) -> torch.Tensor:
        looked[rows.shape[1]] = max(looked.get(rows.shape[1], 0), keys.shape[1])
        return plain(rows, keys, *rest)

    monkeypatch.setattr(attend, "PIECE_ROWS", ROWS)
    monkeypatch.setattr(attend, "attend_rows", count)
    monkeypatch.setattr(f"{__name__}.TREES", (Tree(0, 150, (96,)),))
    _run({"sliding_window": window})
    assert looked == {ROWS: ROWS + window - 1, 246 % ROWS: 246 % ROWS + window - 1}


LONG, EXPERTS, EACH, HIDDEN = 1008, 6, 2, 48  # rows, experts, experts of a row


def _experts(config: PreTrainedConfig) -> tuple[list[torch.Tensor], int]:
    """As `_run`, of a layer's experts with two policies' adapters, whose gradients come last."""
    model, chance = make_model(config).requires_grad_(False), torch.Generator().manual_seed(8)
    path, experts = next((path, each) for path, each in model.named_modules() if path.endswith(".experts"))
    modules = [each for each in find_modules(model).values() if each.path.startswith(f"{path}.")]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance) / 4

    def part(inputs: int, outputs: int) -> Part:
        a, b = draw(EXPERTS, 3, inputs), draw(EXPERTS, 3, outputs)
        return Part(a, b, 0.5, torch.zeros_like(a), torch.zeros_like(b))

    parts = [{each.path: part(each.in_features, each.out_features) for each in modules} for _ in range(2)]
    segments = Segment(0, 350, 1, parts[0]), Segment(350, 1000, 2, parts[1])
    current, tokens = Current(), torch.zeros(LONG, dtype=torch.int64)
    current.batch = Batch(tokens, tokens, (), segments, None)
    routed.prepare(experts, modules, current, Cut(0, EXPERTS))
    hidden, weights = draw(LONG, HIDDEN).requires_grad_(), draw(LONG, EACH).requires_grad_()
    routes = torch.rand(LONG, EXPERTS, generator=chance).topk(EACH).indices
    with _Largest() as largest:
        out = routed.forward(experts, hidden, routes, weights)
        current.batch = None  # as in the backward
        gradients = torch.autograd.grad(out, (hidden, weights), draw(LONG, HIDDEN))
    learnt = [each for own in parts for part in own.values() for each in (part.a_gradient, part.b_gradient)]
    return [out.detach(), *gradients, *learnt], largest.found


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_of_rows_that_are_computed_some_at_a_time_give_what_all_at_once_do(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, most = _experts(FAMILIES[family])
    monkeypatch.setattr(routed, "PIECE_ROWS", ROWS)
    monkeypatch.setattr(routed, "AT_ONCE", 2 * ROWS * EACH * HIDDEN)
    cut, least = _experts(FAMILIES[family])
    for ours, theirs in zip(cut, whole, strict=True):
        assert theirs.any()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert most >= LONG * EACH * HIDDEN, "in one go there is a row for each expert of each row"
    assert least <= LONG * HIDDEN


def test_the_wider_experts_are_inside_the_fewer_rows_they_compute_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of what autograd takes is as wide as that, 3.5 times as wide as their inputs in Mixtral."""
    inner, rows = 6 * HIDDEN, 8 * ROWS
    config = copy.deepcopy(FAMILIES["qwen3_moe"])
    config.moe_intermediate_size = inner
    monkeypatch.setattr(routed, "PIECE_ROWS", ROWS)
    monkeypatch.setattr(routed, "AT_ONCE", rows * EACH * (HIDDEN + inner))
    _, most = _experts(config)
    assert most <= 2 * rows * EACH * 2 * inner, "gate and up, with padding rows"


def test_without_gradients_nothing_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "PIECE_ROWS", ROWS)
    monkeypatch.setattr(attend, "checkpoint", None)  # calling it would fail
    query = torch.randn(1, HEADS, 134, SIZE)
    key = torch.randn(1, KEYS, 134, SIZE)
    with torch.no_grad():
        out, _ = attend.attend(SimpleNamespace(is_causal=True), query, key, key, None, trees=TREES[:1])  # type: ignore[arg-type]
    assert out.shape == (1, 134, HEADS, SIZE)

"""Latent attention's kernels for GPUs, interpreted, against their formulas row by row; and engines that use them."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from mint_contracts.errors import UnsupportedBase
from mint_contracts.layer_groups import LayerGroups, pages_for
from mint_engine.gpu import attend, latent, lora, proof
from mint_engine.gpu.attend import TOKENS
from mint_engine.gpu.find import find_gpu_kernels
from mint_engine.gpu.kernels import GpuKernels
from mint_engine.gpu.latent import LatentWork
from mint_engine.gpu.latent_kernels import score
from mint_engine.model import indexer, paged
from mint_engine.model.cache import LatentCache
from mint_engine.model.latent_sizes import LatentSizes
from mint_engine.model.paged import plan_attention
from mint_engine.model.selection import choose, positions_of
from mint_engine.model.span import Span
from mint_engine.residency.slots import NO_SLOT
from tests.engine.device_double import CUDA, Noted, Silent, standing_in
from tests.engine.running import Answer, ask, running
from tests.engine.saved_families import SERVED, save_adapter, save_base

SPLIT, SCALE = 32, 0.3
# Two layers, of which the second attends to what the first has chosen.
SHARED: dict[str, Any] = {
    "index_topk": SPLIT + 3, "indexer_types": ["full", "shared"], "mlp_layer_types": ["dense", "sparse"],
    "layer_types": ["indexed_attention"] * 2,
}  # fmt: skip
PARTS = st.lists(
    st.tuples(st.sampled_from([0, 1, 15, SPLIT - 1, SPLIT, 90]), st.sampled_from([1, 1, 2, 6])),
    min_size=1,
    max_size=3,
)


@pytest.fixture(autouse=True)
def _short_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "SPLIT", SPLIT)
    monkeypatch.setattr(latent, "MOST_SPLITS", 2)


def spans_of(parts: Sequence[tuple[int, int]], draw: torch.Generator) -> list[Span]:
    """Spans of these positions and lengths, whose pages are anywhere."""
    pages = [pages_for(position + length) for position, length in parts]
    order = iter((1 + torch.randperm(sum(pages), generator=draw)).tolist())
    spans, row = list[Span](), 0
    for (position, length), many in zip(parts, pages, strict=True):
        spans.append(Span(row, length, position, [next(order) for _ in range(many)], NO_SLOT))
        row += length
    return spans


def cache_of(spans: Sequence[Span], sizes: LatentSizes, draw: torch.Generator) -> tuple[LatentCache, torch.Tensor]:
    """A cache on the device that holds all of the spans' pages, and the numbers in it [P, page, W]."""
    pages = sum(len(span.pages) for span in spans)
    cache = LatentCache(LayerGroups(1, (None,), ((0, 0),)), sizes, pages, torch.float32, CUDA)
    held = torch.randn(cache.pool.shape, generator=draw)
    cache.pool.copy_(held)
    return cache, held[0]


def work_of(spans: Sequence[Span], cache: LatentCache) -> LatentWork:
    work = plan_attention(spans, cache, CUDA, GpuKernels()).of(0).latents
    assert work is not None
    return work


def order_of(work: LatentWork, count: int) -> list[int]:
    """Which of a step's rows each of the work's rows is."""
    found: list[int] = list(range(count)) if work.rows is None else work.rows.tolist()
    return found


def naive(query: torch.Tensor, past: torch.Tensor, latent: int) -> torch.Tensor:
    """One row's absorbed queries [Q, C + E] over what it sees [N, C + E]."""
    return torch.softmax(query @ past.t() * SCALE, dim=1) @ past[:, :latent]


@settings(max_examples=15)
@given(
    shape=st.sampled_from([(1, 4, 4), (4, 20, 8), (5, 16, 16), (40, 24, 4)]),
    parts=PARTS,
    most=st.sampled_from([None, 5, SPLIT + 9]),
)
@example(shape=(4, 20, 8), parts=[(3, 1), (2, TOKENS + 5)], most=None)
@example(shape=(4, 20, 8), parts=[(3, 1), (2, TOKENS + 5)], most=SPLIT + 9)
def test_every_row_attends_to_its_own_past_or_to_what_was_chosen_of_it(
    shape: tuple[int, int, int], parts: list[tuple[int, int]], most: int | None
) -> None:
    (heads, latent, rotated), draw = shape, torch.Generator().manual_seed(3)
    sizes = LatentSizes(latent, rotated, expanded=2 * latent, index=4 if most else 0, most=most)
    spans = spans_of(parts, draw)
    query = torch.randn(sum(length for _, length in parts), heads, latent + rotated, generator=draw)
    with standing_in():
        cache, held = cache_of(spans, sizes, draw)
        work = work_of(spans, cache)
        given = None
        rows = [(span, span.row + at, span.position + at) for span in spans for at in range(span.length)]
        rows = [rows[at] for at in order_of(work, len(rows))]
        seen = [torch.arange(position + 1) for _, _, position in rows]
        if most is not None and work.runs:
            seen = [torch.randperm(len(each), generator=draw)[:most].sort().values for each in seen]
            given = torch.zeros(len(rows), most, dtype=torch.int32)
            for at, each in enumerate(seen):
                given[at, : len(each)] = each
        asked = query[order_of(work, len(rows))].to(CUDA)
        found = work.attend(asked, cache.of(0), latent, SCALE, None if given is None else given.to(CUDA)).cpu()
    for at, ((span, row, _), each) in enumerate(zip(rows, seen, strict=True)):
        past = held[list(span.pages)].flatten(0, 1)[each, : latent + rotated]
        assert torch.allclose(found[at], naive(query[row], past, latent), atol=1e-4, rtol=1e-4)


@settings(max_examples=12)
@given(parts=PARTS, shape=st.sampled_from([(1, 4), (24, 16), (3, 12)]), most=st.integers(1, 30))
def test_every_row_chooses_by_the_indexers_scores(
    parts: list[tuple[int, int]], shape: tuple[int, int], most: int
) -> None:
    (heads, size), draw = shape, torch.Generator().manual_seed(4)
    sizes = LatentSizes(8, 4, expanded=16, index=size, most=most)
    spans, count = spans_of([*parts, (most, 1)], draw), sum(length for _, length in parts) + 1
    query, weights = torch.randn(count, heads, size, generator=draw), torch.randn(count, heads, generator=draw)
    scored = list[int]()
    with standing_in(), pytest.MonkeyPatch.context() as patch:
        cache, held = cache_of(spans, sizes, draw)
        work = work_of(spans, cache)
        order, longest = order_of(work, count), max(span.position + span.length for span in spans)
        given, of = query.to(CUDA), weights.to(CUDA)
        scores = work.score(given[order], of[order], cache.of(0), 12, slice(None), longest).cpu()
        patch.setattr(LatentWork, "score", noting(LatentWork.score, scored))
        patch.setattr(paged, "SCORES", 1 << 10)  # of a few rows at once
        found = indexer._positions(given, of, work, cache.of(0), 12, most)
        assert found is not None
        found = found.cpu()
    chosen = choose(scores, scores != -torch.inf, most)
    positions, least = positions_of(chosen, most), 0
    for span in spans:
        past, last = held[list(span.pages)].flatten(0, 1)[:, 12:], span.position + span.length
        least += span.length * last if last > most else 0
        for at in range(span.length):
            row, seen, place = span.row + at, span.position + at + 1, order.index(span.row + at)
            expected = weights[row] @ torch.relu(query[row] @ past[:seen].t())
            assert torch.allclose(scores[place, :seen], expected, atol=1e-4, rtol=1e-4)
            assert (scores[place, seen:] == -torch.inf).all()
            assert chosen[place].sum() == min(seen, most)
            assert positions[place, : min(seen, most)].tolist() == chosen[place].nonzero().flatten().tolist()
            assert found[place, : min(seen, most)].tolist() == positions[place, : min(seen, most)].tolist()
    assert least <= sum(scored) < 2 * least, "of pasts that are chosen from, padded to less than twice their length"


def noting(score: Callable[..., torch.Tensor], scored: list[int]) -> Callable[..., torch.Tensor]:
    """The same, which notes how many scores it computes."""

    def noted(*args: Any) -> torch.Tensor:
        found = score(*args)
        scored.append(found.numel())
        return found

    return noted


def test_a_long_past_costs_rows_beside_it_nothing() -> None:
    sizes = LatentSizes(8, 4, expanded=16, index=4, most=2048)
    lengths = [1000, 131072, 3000, 7, 4095, 5000]
    spans = [Span(row, 1, length - 1, range(pages_for(length)), row) for row, length in enumerate(lengths)]
    plan = GpuKernels().plan_latents(spans, sizes, whole=True)
    assert plan.runs == ((0, 2, 0), (2, 4, 4095), (4, 5, 5000), (5, 6, 131072))
    assert plan.lists[0] == list(plan.slots) == [0, 3, 2, 4, 5, 1], "the step's rows, in this order"
    assert not plan.whole
    ordered = GpuKernels().plan_latents(sorted(spans, key=lambda span: span.position), sizes, whole=True)
    assert ordered.whole
    assert ordered.runs == plan.runs
    assert GpuKernels().plan_latents([spans[3], spans[0]], sizes, whole=True).runs == ()


def test_rows_of_an_odd_number_of_heads_are_scored_by_one_program_wherever_they_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw, forms = torch.Generator().manual_seed(7), set[tuple[str, Any]]()
    sizes, heads = LatentSizes(8, 4, expanded=16, index=16, most=2), 3
    spans = spans_of([(5, 4)], draw)
    monkeypatch.setattr(latent, "score", Noted(score, forms))
    with standing_in():
        cache, _ = cache_of(spans, sizes, draw)
        work = work_of(spans, cache)
        query, weights = torch.zeros(4, heads, 16, device=CUDA), torch.zeros(4, heads, device=CUDA)
        for first in range(4):
            rows = slice(first, 4)
            work.score(query[rows], weights[rows], cache.of(0), 12, rows, 9)
    assert len(forms) == 1


def test_a_split_past_gives_the_same_whatever_else_is_in_the_batch() -> None:
    draw = torch.Generator().manual_seed(5)
    sizes, short, long = LatentSizes(20, 8, 40), (SPLIT + 7, 1), (3 * SPLIT - 1, 1)
    spans = spans_of([short, long], draw)
    query = torch.randn(2, 3, 28, generator=draw)
    with standing_in():
        cache, _ = cache_of(spans, sizes, draw)
        alone, beside = (
            work_of(spans[:count], cache).attend(query[:count].to(CUDA), cache.of(0), 20, SCALE, None).cpu()
            for count in (1, 2)
        )
    assert torch.equal(alone[0], beside[0])


def test_long_chunks_that_see_all_are_expanded_and_others_are_not() -> None:
    sizes = LatentSizes(latent=8, rotated=4, expanded=6, index=4, most=40)  # absorbs up to four rows
    assert [sizes.absorbs(rows) for rows in (4, 5)] == [True, False]
    parts = [(9, 1), (0, 5), (3, 4), (38, 5)]
    with standing_in():
        spans = spans_of(parts, torch.Generator().manual_seed(6))
        cache, _ = cache_of(spans, sizes, torch.Generator())
        plan = plan_attention(spans, cache, CUDA, GpuKernels()).of(0)
        assert [(chunk.start, chunk.stop) for chunk in plan.chunks] == [(1, 6)]
        assert plan.latents is not None
        assert plan.latents.rows is not None
        assert plan.latents.rows.tolist() == [0, *range(6, 15)]
        assert plan.latents.runs == ((0, 5, 0), (5, 10, 43))
        assert plan_attention(spans[1:2], cache, CUDA, GpuKernels()).of(0).latents is None


@pytest.mark.parametrize(
    ("seen", "most", "splits"),
    [
        (SPLIT, None, 1),
        (SPLIT + 1, None, 2),
        (90 * SPLIT, None, 2),
        (90 * SPLIT, SPLIT, 1),
        (90 * SPLIT, SPLIT + 1, 2),
    ],
)
def test_a_past_has_a_few_splits_of_what_is_read_of_it(seen: int, most: int | None, splits: int) -> None:
    assert latent.splits_of(seen - 1, most) == splits


@pytest.mark.parametrize(
    ("programs", "what"), [(("attend_latents", "combine"), "latent attention"), (("score",), "an indexer's scores")]
)
def test_kernels_that_differ_from_plain_torch_are_not_used(
    programs: tuple[str, ...], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_adapters", lambda *_: [])
    for program in programs:
        monkeypatch.setattr(latent, program, Silent())
    with standing_in(), pytest.raises(UnsupportedBase, match=f"{what} in torch.float32 on cuda:0: differs"):
        proof.prove(GpuKernels(), torch.float32, CUDA, latents=True)


@pytest.mark.parametrize(
    ("module", "program", "latents"), [(latent, "attend_latents", True), (attend, "attend", False)]
)
def test_kernels_that_a_base_has_no_use_for_take_no_others_away(
    module: Any, program: str, latents: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, program, Silent())
    find_gpu_kernels.cache_clear()
    with standing_in():
        assert find_gpu_kernels(torch.float32, CUDA, latents=not latents) is not None
        assert find_gpu_kernels(torch.float32, CUDA, latents=latents) is None
    find_gpu_kernels.cache_clear()


async def answers(base: Path, adapter: Path, ready: list[Any]) -> list[Answer]:
    """Of requests that decode beside prompts, with short pasts and long ones; calls what is to be done when ready."""
    long, short = [5 + at % 200 for at in range(SPLIT + 9)], [5, 6, 7]
    async with running(base, {"a": adapter}, device="cuda") as engine:
        for each in ready:
            each()
        asked = [(short, "a"), (long * 2, "a"), (long, ""), (short, "")]
        told = [ask(engine, prompt, who, max_tokens=3, ignore_eos=True) for prompt, who in asked]
        return list(await asyncio.gather(*told))


@pytest.mark.parametrize(
    ("name", "changes", "used"),
    [
        ("deepseek_v3", {}, {"attend_latents", "combine"}),
        ("glm_5", SHARED, {"attend_latents", "combine", "score"}),
    ],
    ids=["deepseek_v3", "glm_5"],
)
async def test_engines_give_plain_torchs_tokens_and_no_request_waits_for_the_compiler(
    name: str, changes: dict[str, Any], used: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    base = save_base(name, tmp_path / "base", num_hidden_layers=2, **changes)
    adapter = save_adapter(base, tmp_path / "a", 4, **SERVED[name])
    forms, ready = set[tuple[str, Any]](), set[tuple[str, Any]]()
    monkeypatch.setattr(lora, "FEW", 1)
    monkeypatch.setattr(paged, "SCORES", 1 << 10)  # of two or three rows at once
    with standing_in():
        assert find_gpu_kernels(torch.float32, CUDA, latents=True) is not None
        for module, kernel in ((latent, "attend_latents"), (latent, "combine"), (latent, "score")):
            monkeypatch.setattr(module, kernel, Noted(getattr(module, kernel), forms))
        with capture_logs() as lines:
            found = await answers(base, adapter, [lambda: ready.update(forms)])
        monkeypatch.setattr("mint_engine.model.generic.find_gpu_kernels", lambda *_, **__: None)
        expected = await answers(base, adapter, [])
    for one, other in zip(found, expected, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert {form for form, _ in forms} == used
    assert forms == ready
    assert [line["compute"] for line in lines if line["event"] == "pass_chosen"] == ["generic (triton)"]

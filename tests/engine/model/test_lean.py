"""The lean pass computes what the generic pass does for every family it takes; other bases use the generic pass."""

import copy
import ctypes
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM, PreTrainedConfig

from mint_contracts.layer_groups import first_seen
from mint_engine.model.base import Base
from mint_engine.model.cache import Cache
from mint_engine.model.cache_shape import cache_shape
from mint_engine.model.experts import route_shape
from mint_engine.model.forward import Forward
from mint_engine.model.llama_like import GROUPED, OTHERS
from mint_engine.model.modules import find_modules
from mint_engine.model.routes import RouteCache
from mint_engine.model.span import Span
from mint_engine.residency.slots import NO_SLOT, Slots
from tests.engine.lean_families import LEFT, TAKEN
from tests.engine.parallel import playing
from tests.waiting import join

CPU = torch.device("cpu")
RANKS = (4, 16, 3)


def make(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    *,
    lean: bool,
    ranks: Sequence[int] = RANKS,
    rounded: bool = False,
) -> Forward:
    """Make the same base and adapters each time; with `rounded`, their values are bfloat16's in any dtype."""
    torch.manual_seed(3)
    drawn = torch.bfloat16 if rounded else dtype
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=drawn)  # type: ignore[no-untyped-call]
    if rounded:
        model = model.to(dtype)
    model.train(False)
    if config.model_type in OTHERS:
        move_from_start(model)
    base = Base(model, None, frozenset(), type(model).__name__, 256, config.vocab_size, dtype, CPU)  # type: ignore[arg-type]
    slots = Slots(find_modules(model), len(ranks), 16, dtype, CPU)
    draw = torch.Generator().manual_seed(5)
    for slot, rank in enumerate(ranks):
        fill(slots, slot, rank, draw)
    if rounded:
        slots.memory.copy_(slots.memory.to(torch.bfloat16))
    cache, routes = cache_shape(model.config).make(320, dtype, CPU), route_shape(model)
    cache.routes = RouteCache(routes, 320, CPU) if routes is not None else None
    return Forward(base, slots, cache, lean=lean)


@torch.no_grad()
def move_from_start(model: Any) -> None:
    """Move norms, biases and sinks from their initial zero or one, in families with special ones."""
    draw = torch.Generator().manual_seed(9)
    for name, each in sorted((*model.named_parameters(), *model.named_buffers())):
        if "norm" in name or "bias" in name or "sinks" in name:
            each.add_((torch.randn(each.shape, generator=draw) * 0.2).to(torch.bfloat16).to(each.dtype))


def fill(slots: Slots, slot: int, rank: int, draw: torch.Generator) -> None:
    """Put random weights into every second module, starting with the slot's number."""
    at = 0
    for module, (wide, high) in enumerate(slots.shapes):
        if (module + slot) % 2:
            continue
        count = rank * (wide + high) * slots.experts[module]
        slots.memory[slot, at : at + count] = torch.randn(count, generator=draw) * 0.1
        slots.places[module, slot], slots.ranks[module, slot], slots.scalings[module, slot] = at, rank, 1.5
        at += count
    slots.filled[slot] = at


def span_of(cache: Cache, row: int, length: int, position: int, pages: list[int], slot: int) -> Span:
    """A span with pages of other groups of layers, and null pages for what lies before a window."""
    groups, others = cache.groups, []
    for at, window in enumerate(groups.windows[1:], 1):
        first = first_seen(position, window)
        others.append([0 if n < first else page + 80 * at for n, page in enumerate(pages)])
    if groups.windows[0] is not None:
        first = first_seen(position, groups.windows[0])
        pages = [0 if n < first else page for n, page in enumerate(pages)]
    return Span(row, length, position, pages, slot, others)


def play(forward: Forward, turns: list[list[tuple[int, int]]]) -> torch.Tensor:
    """Every turn's logits: each (sequence, count) gets its next tokens, in one batch; sequence 0 is bare."""
    owned = [[(who, count, who - 1 if who else NO_SLOT) for who, count in turn] for turn in turns]
    return playing.play(forward, owned, span_of)


EVEN = frozenset({"granitemoe", "ernie4_5_moe", "hunyuan_v1_moe"})  # families whose experts often score equally
OF_EXPERTS = ("granite of experts", "ernie 4.5 of experts", "hunyuan of experts")


def chooses_in_groups(forward: Forward) -> bool:
    return forward.base.config.model_type in GROUPED | {"gpt_oss", "minimax_m2"}


def assert_alike(found: torch.Tensor, expected: torch.Tensor, forward: Forward) -> None:
    """Check equality; in bfloat16, but for a few rows that rounding sends to other experts, in some routed families.

    More rows may differ over latents, where each changes all that follow, and for gpt-oss, whose modules round
    scores; `test_rows_are_no_further_from_float32_than_by_modules` bounds how far.
    """
    rounded = forward.base.dtype == torch.bfloat16
    most, away = 0.04 if rounded else 1e-5, found.float() - expected.float()
    config = forward.base.config
    if not rounded or not (chooses_in_groups(forward) or config.model_type in EVEN):
        assert away.norm() / expected.float().norm() < most
        return
    rows = away.norm(dim=-1) / expected.float().norm(dim=-1)
    far = hasattr(config, "kv_lora_rank") or config.model_type == "gpt_oss"
    assert rows.median() < (1.5 * most if far else most / 2)
    assert (rows > most).float().mean() < (0.6 if far else 0.1)


TURNS = [[(0, 20), (1, 33)], [(0, 1), (1, 1), (2, 50)], [(3, 1)], [(0, 5), (1, 1), (2, 1), (3, 40)], [(2, 1)]]
CROWDED = [[(0, 40), (1, 33)], [(0, 50), (2, 60)], [(1, 70), (0, 1), (3, 100)], [(3, 1)]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", TAKEN)
def test_lean_equals_generic(family: str, dtype: torch.dtype) -> None:
    lean, generic = (make(TAKEN[family], dtype, lean=lean) for lean in (True, False))
    assert lean.compute.startswith("lean")
    assert generic.compute == "generic"
    assert_alike(play(lean, TURNS), play(generic, TURNS), lean)


@pytest.mark.parametrize("turns", [TURNS, CROWDED], ids=["few", "many"])
@pytest.mark.parametrize(
    "family",
    [
        *("deepseek-v3", "kimi-k2", "glm-4.7-flash", "deepseek-v3.2", "glm-5"),
        *("gemma 2", "gemma 3", "gpt-oss", "minimax-m2", "olmo 3", "exaone 4", "granite", "ernie 4.5", "hunyuan"),
        *OF_EXPERTS,
    ],
)
def test_rows_are_no_further_from_float32_than_by_modules(family: str, turns: list[list[tuple[int, int]]]) -> None:
    """In bfloat16: the median row, and the share of rows far off because rounding chose differently for them."""
    exact = make(TAKEN[family], torch.float32, lean=False, rounded=True)
    lean, generic = (make(TAKEN[family], torch.bfloat16, lean=lean) for lean in (True, False))
    expected = play(exact, turns)
    ours, theirs = ((play(each, turns) - expected).norm(dim=-1) / expected.norm(dim=-1) for each in (lean, generic))
    assert ours.median() < 1.2 * theirs.median() < 0.1
    assert (ours > 0.1).float().mean() < (theirs > 0.1).float().mean() + 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "family",
    [
        *("llama", "mixtral", "glm-4.5", "deepseek-v3", "kimi-k2", "glm-5", "gemma 2", "gpt-oss", "olmo 3"),
        *("ernie 4.5 of experts", "hunyuan"),
    ],
)
def test_a_row_does_not_depend_on_its_neighbours(family: str, dtype: torch.dtype) -> None:
    """Bit for bit the same logits, alone or in a batch."""
    forward = make(TAKEN[family], dtype, lean=True)
    alone = play(forward, [[(1, 20)], [(1, 1)]])[-1]
    crowd = play(forward, [[(1, 20)], [(0, 17), (1, 1), (2, 33), (3, 2)]])[20 + 17]
    assert torch.equal(alone, crowd)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "family",
    [
        *("llama", "mixtral", "glm-4.5", "deepseek-v3", "kimi-k2", "glm-5", "gemma 2", "gpt-oss", "olmo 3"),
        *("ernie 4.5 of experts", "hunyuan"),
    ],
)
def test_a_prompt_gets_the_same_in_pieces_of_any_length(family: str, dtype: torch.dtype) -> None:
    """Bit for bit the same logits, though adapters are applied differently to rows that fill a tile and to fewer."""
    forward = make(TAKEN[family], dtype, lean=True)
    whole = play(forward, [[(1, 36)], [(2, 36)], [(3, 36)]])
    for piece in (1, 3, 4, 12):
        turns = [[(who, piece)] for who in (1, 2, 3) for _ in range(36 // piece)]
        assert torch.equal(play(forward, turns), whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "family",
    [
        *("qwen3", "phi-4", "qwen3 moe", "glm-4.5", "deepseek-v3", "kimi-k2", "glm-5"),
        *("gemma 2", "gemma 3", "gpt-oss", "minimax-m2"),
    ],
)
def test_threads_share_a_step_in_any_number(family: str, dtype: torch.dtype) -> None:
    """Bit for bit the same logits, whether teams hold complete sequences or parts of one."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(play(make(TAKEN[family], dtype, lean=True), CROWDED))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(each, found[0]) for each in found)
    generic = make(TAKEN[family], dtype, lean=False)
    assert_alike(found[0], play(generic, CROWDED), generic)


@pytest.mark.skipif(sys.platform != "linux" or torch.get_num_threads() < 2, reason="needs libgomp, and two cores")
def test_steps_take_as_many_threads_as_were_set_by_another_one() -> None:
    """One thread builds the base and another runs the steps; OpenMP settings are per thread."""
    before, openmp = torch.get_num_threads(), ctypes.CDLL("libgomp.so.1")
    try:
        torch.set_num_threads(1)
        forward, found = make(TAKEN["llama"], torch.float32, lean=True), list[int]()

        def step() -> None:
            forward.run([1], [Span(0, 1, 0, [1], NO_SLOT)], [0])
            found.append(openmp.omp_get_max_threads())

        stepping = threading.Thread(target=step)
        stepping.start()
        join(stepping)
        assert found == [1]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "family", ["llama", "mixtral", "dots.llm1", "kimi-k2", "deepseek-v3.2", "gemma 3", "gpt-oss"]
)
def test_single_rows_of_many_adapters_get_what_each_gets_alone(family: str, threads: int, dtype: torch.dtype) -> None:
    """Bit for bit the same logits: in a crowd, adapters are computed between the tiles of the base's products."""
    count = 70
    ranks = [1 + at * 5 % 16 for at in range(count - 2)]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        lean, generic = (make(TAKEN[family], dtype, lean=lean, ranks=ranks) for lean in (True, False))
        tokens = [7 * at % 128 for at in range(count)]
        spans = [span_of(lean.cache, at, 1, 0, [1 + at], max(at - 2, NO_SLOT)) for at in range(count)]
        crowd = lean.run(tokens, spans, range(count)).clone()
        for token, span, found in zip(tokens, spans, crowd, strict=True):
            alone = lean.run([token], [replace(span, row=0)], [0])
            assert torch.equal(alone[0], found)
        expected = generic.run(tokens, spans, range(count)).float()
    finally:
        torch.set_num_threads(before)
    assert_alike(crowd, expected, lean)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "family", ["mixtral", "qwen3 moe", "glm-4.5", "dots.llm1", "deepseek-v3", "minimax-m2", *OF_EXPERTS]
)
def test_routes_are_kept_as_the_generic_pass_keeps_them(family: str, dtype: torch.dtype) -> None:
    """Training replays them. In bfloat16 an expert or two may differ when two score equally."""
    lean, generic = (make(TAKEN[family], dtype, lean=lean) for lean in (True, False))
    for forward in (lean, generic):
        play(forward, TURNS)
    assert lean.routes is not None
    assert generic.routes is not None
    pages, tokens = list(range(1, 11)), 26  # of the first sequence
    found, expected = (each.read(pages, tokens) for each in (lean.routes, generic.routes))
    if chooses_in_groups(lean):  # transformers chooses them in no order
        for each in (found, expected):
            each.sort(axis=-1)
    assert expected.any()
    assert (found != expected).mean() <= (0 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("family", ["mixtral", "glm-4.5"])
def test_a_row_of_nan_is_routed_somewhere_and_no_other_row_notices(family: str) -> None:
    """An adapter with excessive weights produces such rows."""
    forward = make(TAKEN[family], torch.bfloat16, lean=True)
    spans = [Span(0, 5, 0, [1], 0), Span(5, 5, 0, [2], 1)]
    expected = forward.run(range(10), spans, range(10))[5:].clone()
    forward.slots.memory[0, : forward.slots.filled[0]] = 3e38
    found = forward.run(range(10), spans, range(10))
    assert not found[:5].isfinite().all()
    assert torch.equal(found[5:], expected)


@pytest.mark.parametrize("family", LEFT)
def test_other_bases_take_the_generic_pass(family: str) -> None:
    assert make(LEFT[family], torch.float32, lean=True).compute == "generic"


def test_a_device_that_is_full_is_not_taken_for_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = make(TAKEN["llama"], torch.float32, lean=False)
    run, errors = forward._pass.run, list[Exception]()

    def fail_first(*given: Any) -> torch.Tensor:
        if errors:
            raise errors.pop()
        return run(*given)

    monkeypatch.setattr(forward._pass, "run", fail_first)
    full, broken = torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("an illegal memory access")
    with capture_logs():
        for comes, computes in {(full,): True, (full, full): True, (full, broken): False, (broken,): False}.items():
            errors[:] = comes[::-1]
            assert forward.computes() is computes
            assert not errors

"""Every family's generic pass computes what transformers does: chunks and decoding, alone and mixed, pages reused."""

import itertools
import random

import pytest
import torch

from mint_contracts.layer_groups import NULL_PAGE, PAGE_TOKENS, first_seen, pages_for
from mint_engine.kernels.library import find_kernels
from mint_engine.model import generic, paged
from mint_engine.model.forward import Forward
from mint_engine.model.modules import Current
from mint_engine.model.span import Span
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.sampling import choose_tokens
from mint_engine.residency.slots import NO_SLOT
from tests.engine.families import (
    CPU,
    FAMILIES,
    NONE_SHARED,
    fill,
    make_forward,
    make_model,
    merge,
    plain_logits,
    span,
)
from tests.engine.turns import LENGTH, TURNS, play, text

KERNELS = find_kernels(torch.bfloat16, CPU)


def filled(name: str, *, every: int = 1) -> Forward:
    """A Forward with adapters of different ranks in slots 0 to 2; slot 3 stays empty."""
    forward = make_forward(FAMILIES[name])
    for slot, rank in enumerate((4, 8, 3)):
        fill(forward.slots, slot, rank, every=every)
    return forward


def check(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that log-probabilities are equal to rounding, and that every row has the same likeliest token."""
    torch.testing.assert_close(torch.log_softmax(found, -1), torch.log_softmax(expected, -1), rtol=0, atol=2e-3)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(
    ("name", "compiled"),
    [*((name, True) for name in FAMILIES), *((name, False) for name in ("llama", "gpt_oss", "glm_5"))],
)
def test_adapters_in_one_batch_equal_merged_weights(
    name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adapters on every linear, also low-rank projections and shared and routed experts, beside the bare base."""
    if not compiled:
        monkeypatch.setattr(generic, "find_kernels", lambda dtype, device: None)
    forward = filled(name)
    slots = [0, 1, 2, NO_SLOT]
    for who, (found, slot) in enumerate(zip(play(forward, TURNS, slots), slots, strict=True)):
        model = make_model(FAMILIES[name])
        reference = model if slot == NO_SLOT else merge(model, forward.slots, slot)
        check(found, plain_logits(reference, text(who)))


def test_an_adapter_where_shared_experts_have_no_columns() -> None:
    """`n_shared_experts: 0`: transformers has them all the same, of linears without any weights."""
    forward = make_forward(NONE_SHARED)
    fill(forward.slots, 0, 4)
    [found] = play(forward, [[(0, LENGTH)]], [0])
    check(found, plain_logits(merge(make_model(NONE_SHARED), forward.slots, 0), text(0)))


def test_a_step_that_fails_before_it_is_computed_leaves_no_adapter_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a device that has no memory left for the step's inputs."""
    forward = filled("qwen3_moe")
    [expected] = play(forward, [[(0, LENGTH)]], [NO_SLOT])

    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as full:
        full.setattr(generic, "lists_on", refuse)
        with pytest.raises(torch.OutOfMemoryError):
            play(forward, [[(0, LENGTH)]], [0])
    assert isinstance(forward._pass, generic.Generic)
    assert forward._pass._current == Current(), "nor does it keep anything of the step's in memory"
    [found] = play(forward, [[(0, LENGTH)]], [NO_SLOT])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_few_rows_at_a_time_as_all_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of long prompts and of decoding requests are computed in parts; here in parts of one row or head."""
    slots = [0, 1, 2, NO_SLOT]
    expected = play(filled(name), TURNS, slots)
    monkeypatch.setattr(paged, "SCORES", 1)
    monkeypatch.setattr(paged, "READ_BYTES", 1)
    for found, wanted in zip(play(filled(name), TURNS, slots), expected, strict=True):
        check(found, wanted)


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3", "deepseek_v32"])
def test_long_requests_and_short_ones_that_decode_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are grouped by length; each gets its result as alone, in the order of the requests."""
    monkeypatch.setattr(paged, "SHORT", 1)
    forward = filled(name)
    lengths, tables = (3, 200, 17, 90), ([1], list(range(2, 15)), [15, 16], list(range(17, 23)))
    draw = random.Random(9)
    said = [[draw.randrange(2, 96) for _ in range(length + 1)] for length in lengths]
    alone = []
    for tokens, length, pages in zip(said, lengths, tables, strict=True):
        forward.run(tokens[:-1], [span(forward.cache, 0, length, 0, pages, 0)], [0])
        last = span(forward.cache, 0, 1, length, pages, 0)
        alone.append(forward.run(tokens[-1:], [last], [0]).to(torch.float32, copy=True)[0])
    spans = [span(forward.cache, row, 1, lengths[row], tables[row], 0) for row in range(4)]
    check(forward.run([tokens[-1] for tokens in said], spans, range(4)).float(), torch.stack(alone))


def test_a_long_request_does_not_add_to_what_short_ones_read() -> None:
    lengths = [16] * 63 + [4096]
    found = planned(lengths)
    assert [found[row][0] for row in range(64)] == lengths
    assert sum(pages for _, pages in found.values()) < 2 * sum(map(pages_for, lengths))
    for length, pages in planned([1, 300, 496, 497, 513, 1100, 9000]).values():
        assert pages_for(length) <= pages < max(2 * pages_for(length), paged.SHORT)


def test_reads_are_bounded_however_many_requests_decode_over_one_long_prompt() -> None:
    cache, pages = make_forward(FAMILIES["gemma3"]).cache, range(1, 6001)
    spans = [span(cache, row, 1, 6000 * PAGE_TOKENS - 1, pages, NO_SLOT) for row in range(64)]
    groups = paged.plan_attention(spans, cache, CPU).groups[0].decodes
    each = cache.pool[0, 0].nbytes
    assert all(len(group.table) * each <= paged.READ_BYTES for group in groups)
    assert [int(row) for group in groups for row in group.rows] == list(range(64))
    assert len(groups) == -(-64 // (paged.READ_BYTES // (6000 * each))), "and no more groups than that needs"


def test_a_request_that_alone_reads_more_than_the_bound_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "READ_BYTES", 1)
    cache = make_forward(FAMILIES["gemma3"]).cache
    spans = [span(cache, row, 1, 40, (1, 2, 3), NO_SLOT) for row in range(3)]
    groups = paged.plan_attention(spans, cache, CPU).groups[0].decodes
    assert [group.rows.tolist() for group in groups] == [[0], [1], [2]]


def planned(lengths: list[int]) -> dict[int, tuple[int, int]]:
    """For requests decoding with these many tokens, by row: the number of tokens, and of pages read for each."""
    spans = [Span(row, 1, length - 1, range(1, 1 + pages_for(length)), NO_SLOT) for row, length in enumerate(lengths)]
    cache = make_forward(FAMILIES["llama"]).cache
    return {
        int(row): (int(length), len(group.table) // len(group.rows))
        for group in paged.plan_attention(spans, cache, CPU).groups[0].decodes
        for row, length in zip(group.rows, group.lengths, strict=True)
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_request_computes_the_same_alone_and_in_company(name: str) -> None:
    """Adapters on every second module, in slots of different layouts, give the same together as alone."""
    forward = filled(name, every=2)
    slots = [2, 0, 1, 0]
    together = play(forward, TURNS, slots)
    for who in range(4):
        turns = [[each for each in turn if each[0] == who] for turn in TURNS]
        alone = play(forward, [turn for turn in turns if turn], slots)
        check(together[who], alone[who])


@pytest.mark.skipif(KERNELS is None or "bf16" not in KERNELS.variant, reason="the library's products are other ones")
def test_in_bfloat16_a_seed_gives_the_same_tokens_whoever_is_beside() -> None:
    """The library's own products give this only with bfloat16 instructions; in float32 they vary by batch."""
    forward = make_forward(FAMILIES["gemma3"], dtype=torch.bfloat16, pages=3 * 64)
    alone, beside_one, beside_many = (draw_together(forward, count, 44) for count in (1, 2, 16))
    assert alone[0] == beside_one[0] == beside_many[0]
    assert len(set(map(tuple, beside_many))) == 16


def draw_together(forward: Forward, count: int, steps: int) -> list[list[int]]:
    """Decode `count` requests of different lengths at temperature 1, all in each batch; return their tokens."""
    said = [text(who)[: 5 + who] for who in range(count)]
    ends, done = [len(each) for each in said], [0] * count
    for step in range(steps):
        spans, row = [], 0
        for who, tokens in enumerate(said):
            left, pages = len(tokens) - done[who], range(1 + 4 * who, 5 + 4 * who)
            spans.append(span(forward.cache, row, left, done[who], pages, NO_SLOT))
            row += left
        new = [token for tokens, start in zip(said, done, strict=True) for token in tokens[start:]]
        logits = forward.run(new, spans, [each.row + each.length - 1 for each in spans])
        wanted = [(Sampling(max_tokens=steps, temperature=1.0, seed=who), step) for who in range(count)]
        done = [len(tokens) for tokens in said]
        for tokens, token in zip(said, choose_tokens(logits, wanted), strict=True):
            assert token is not None
            tokens.append(token)
    return [tokens[end:] for tokens, end in zip(said, ends, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shared_prefix_is_read_from_another_requests_pages(name: str) -> None:
    """Two requests of one adapter share two full pages: the second computes only what follows them."""
    forward = filled(name)
    tokens, shared = text(0), 2 * PAGE_TOKENS
    first = span(forward.cache, 0, LENGTH, 0, [1, 2, 3], 1)
    whole = forward.run(tokens, [first], range(LENGTH)).to(torch.float32, copy=True)
    second = span(forward.cache, 0, LENGTH - shared, shared, [1, 2, 7], 1)
    rest = forward.run(tokens[shared:], [second], range(LENGTH - shared))
    check(rest.float(), whole[shared:])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_request_gets_nothing_of_what_its_pages_held(name: str) -> None:
    forward = filled(name)
    whole = span(forward.cache, 0, LENGTH, 0, [4, 2, 9], 0)
    expected = forward.run(text(1), [whole], range(LENGTH)).clone()
    forward.cache.pool.fill_(torch.nan)  # the worst that a former request could leave
    forward.wipe([0, *(page for table in (whole.pages, *whole.others) for page in table)])
    assert torch.equal(forward.run(text(1), [whole], range(LENGTH)), expected)


@pytest.mark.parametrize(
    "name", [name for name, config in FAMILIES.items() if getattr(config, "sliding_window", None)]
)
def test_pages_behind_a_window_are_never_read(name: str) -> None:
    """Those pages belong to others by then; a chunk and single tokens continue from what remains of the window."""
    forward = filled(name)
    windows, cuts = forward.cache.groups.windows, (0, 30, 37, *range(38, LENGTH + 1))
    expected = play(forward, [[(0, stop - start)] for start, stop in itertools.pairwise(cuts)], [1])[0]
    assert any(windows), "a window of 11 tokens"
    whole, found = span(forward.cache, 0, LENGTH, 0, [1, 2, 3], 1), []
    for start, stop in itertools.pairwise(cuts):
        tables = [list(table) for table in (whole.pages, *whole.others)]
        for table, window in zip(tables, windows, strict=True):
            for at in range(first_seen(start, window)):
                forward.cache.pool[:, table[at]] = torch.nan
                table[at] = NULL_PAGE
        part = Span(0, stop - start, start, tables[0], 1, tables[1:])
        found.append(forward.run(text(0)[start:stop], [part], range(stop - start)).to(torch.float32, copy=True))
    check(torch.cat(found), expected)

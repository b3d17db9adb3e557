"""Which parts and runs of a catalog are merged, and when: decided from their names alone."""

import msgspec

from mint_contracts.part_names import Span
from mint_gateway.catalog import merging
from mint_gateway.catalog.compaction import ENOUGH, GROWN, HELD, SLACK, below, due


def part(first: int, count: int, *, run: bool = False) -> Span:
    return Span(first, first + count - 1, f"{first}", (f"{first}",), count, run)


def test_a_merge_of_all_that_is_older_forgets_what_was_retired_long_ago() -> None:
    counted, never = [part(1, 5), part(10, 5), part(20, 5)], 1 << 63
    assert below(counted, 0, 2, never) == 20
    assert below(counted, 0, 3, never) == never
    assert below(counted, 0, 2, 15) == 15, "a Redis that comes back may know what it was before"
    assert below(counted, 1, 3, never) == 0
    endless = msgspec.structs.replace(counted[1], ends=False)
    assert below([counted[0], endless], 0, 2, never) == 0, "it may be left beside the run"


def test_everything_is_merged_where_too_many_rows_are_dead() -> None:
    bottom, newer = part(1, 40_000, run=True), [part(10**6 * n, 10_000) for n in range(1, 4)]
    counted = [bottom, *newer]
    assert due(counted, 70_000, live=70_000) == ()
    assert due(counted, 70_000, live=int((70_000 - SLACK) / GROWN) - 1) == counted
    assert due([part(1, 10**6, run=True), part(10**7, 100)], 10**6 + 100, live=10) == (), (
        "for so little it is not worth it"
    )


def test_large_merges_go_in_parts_and_rewrite_no_row_often() -> None:
    counted, rows, rewritten = [part(10**7 * n, 10_000) for n in range(1, 101)], 10**6, 0
    counted = [part(1, 10**6, run=True), *counted]
    while window := due(counted, rows + 10**6, live=10**6):
        held = sum(min(span.rows, merging.PIECE) if span.run else span.rows for span in window)
        assert held <= HELD
        at, count = counted.index(window[0]), sum(span.rows for span in window)
        counted[at : at + len(window)] = [Span(window[0].first, window[-1].last, f"m{rewritten}", (), count, True)]
        rewritten += count
    assert len(counted) == 1
    assert rewritten <= 4 * 10**6  # each row once into a run, and once in the final merge


def test_many_parts_become_few_and_the_large_stay_as_they_are() -> None:
    small = [part(10**7 + number, 2) for number in range(1, ENOUGH)]
    large = part(1, 10**6, run=True)
    assert due([large, *small], 10**6 + 126, live=10**6) == small
    assert due(small, 126, live=126) == ()


def test_entries_registered_bit_by_bit_are_rewritten_a_few_times() -> None:
    counted, rewritten, most = list[Span](), 0, 0
    for number in range(20_000):
        counted.append(part(number + 1, 1))
        rows = number + 1
        while window := due(counted, rows, live=rows):
            at, count = counted.index(window[0]), sum(span.rows for span in window)
            counted[at : at + len(window)] = [Span(window[0].first, window[-1].last, f"m{number}", (), count, True)]
            rewritten += count
        most = max(most, len(counted))
    assert most <= ENOUGH
    assert rewritten <= 6 * 20_000

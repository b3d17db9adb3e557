"""Which manifest parts count: those that no complete run has replaced."""

import itertools

import pytest

from mint_contracts.part_names import part_name, piece_name, replaced, sequence_of, spans


def run(first: int, last: int, token: str, pieces: int = 2) -> list[str]:
    return [piece_name(first, last, token, n, 10, end=n == pieces - 1) for n in range(pieces)]


PARTS = [part_name(first, 5) for first in (10, 20, 30, 40)]


def test_parts_count_the_oldest_first_and_other_files_do_not() -> None:
    old = ["0000000000000050-abcdef01.jsonl", "0000000000000060-abcdef01-7.merged.jsonl"]
    found = spans([*reversed(PARTS), *old, "README", "x-1-2.jsonl", "0000000000000010.jsonl"])
    assert [span.names[0] for span in found] == [*PARTS, *old]
    assert [(span.first, span.last, span.rows, span.run) for span in found[3:]] == [
        (40, 44, 5, False),
        (50, 50, 10_000, False),
        (60, 60, 7, False),
    ]
    assert sequence_of("README") is None


def test_a_run_takes_the_place_of_what_lies_within_it_once_it_is_whole() -> None:
    whole = run(10, 34, "aaaa", pieces=12)
    for written in range(len(whole)):
        names = [*PARTS, *whole[:written]]
        assert [span.names[0] for span in spans(names)] == PARTS
        assert replaced(names) == []
    found = spans([*PARTS, *reversed(whole)])
    assert [(span.first, span.last, span.rows, span.run) for span in found] == [
        (10, 34, 120, True),
        (40, 44, 5, False),
    ]
    assert found[0].names == tuple(whole), "its pieces are in their order, also beyond the tenth"
    assert replaced([*PARTS, *whole]) == PARTS[:3]


def test_what_is_left_of_a_run_counts_and_replaces_nothing() -> None:
    whole, later = run(10, 34, "aaaa", pieces=3), run(10, 44, "bbbb")
    for missing in whole[:-1]:
        left = [name for name in whole if name != missing]
        [torn] = [span for span in spans([*PARTS, *left]) if span.torn]
        assert (torn.names, torn.run, torn.rows) == (tuple(left), False, 20)
        assert [span.names[0] for span in spans([*PARTS, *left]) if span != torn] == PARTS
        assert replaced([*PARTS, *left]) == []
        assert spans([*left, *later]) == spans(later), "until a complete run has replaced it"
        assert replaced([*left, *later]) == left


def test_one_of_two_runs_over_the_same_range_counts_and_both_of_two_that_overlap() -> None:
    one, other, beyond = run(10, 34, "aaaa"), run(10, 34, "bbbb"), run(30, 44, "cccc")
    assert [span.token for span in spans([*one, *other])] == ["bbbb"]
    assert replaced([*one, *other]) == one
    assert [span.token for span in spans([*other, *beyond])] == ["bbbb", "cccc"]
    assert replaced([*other, *beyond]) == []


def test_no_run_takes_the_place_of_a_part_whose_name_does_not_tell_where_it_ends() -> None:
    old, whole = ["0000000000000020-abcdef01-7.merged.jsonl", "0000000000000021-abcdef01.jsonl"], run(10, 34, "aaaa")
    assert [span.names[0] for span in spans([*old, *whole])] == [whole[0], *old]
    assert replaced([*old, *whole]) == []


def test_leftovers_of_an_interrupted_merge_are_removed_with_the_parts_it_would_have_replaced() -> None:
    left, whole = run(10, 34, "aaaa")[:1], run(10, 44, "bbbb")
    assert replaced([*PARTS, *left]) == []
    assert set(replaced([*PARTS, *left, *whole])) == {*PARTS, *left}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_valid_parts_do_not_depend_on_the_order_of_a_listing(order: tuple[int, ...]) -> None:
    groups = [PARTS, run(10, 24, "aaaa"), run(20, 44, "bbbb")]
    names = [name for at in order for name in groups[at]]
    assert [span.token for span in spans(names)] == ["aaaa", "bbbb"]

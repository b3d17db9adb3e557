"""How an update is cut into turns depends on the update alone: each row once, in order, and no turn too long."""

from dataclasses import astuple
from functools import partial
from itertools import groupby, pairwise, zip_longest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.training import Loss
from mint_engine.training.agenda import Agenda
from mint_engine.training.example import Example, PolicyBatch
from mint_engine.training.pieces import Piece, plan_pieces, rows_of

PLAIN = Loss(type="cross_entropy")
_EXAMPLES = st.lists(
    st.tuples(st.integers(1, 12), st.lists(st.booleans(), min_size=12, max_size=12), st.integers(0, 1)), max_size=20
).map(
    lambda drawn: [
        Example([first] * length, [1] * length, [float(weighted) for weighted in weights[:length]])
        for length, weights, first in drawn
    ]
)


def same(one: Piece, other: Piece) -> bool:
    return (
        one.trees == other.trees
        and np.array_equal(one.tokens, other.tokens)
        and np.array_equal(one.positions, other.positions)
        and all(map(partial(np.array_equal, equal_nan=True), astuple(one.entries), astuple(other.entries)))
    )


@given(_EXAMPLES, st.integers(1, 20), st.integers(1, 40))
def test_turns_hold_every_piece_once_in_order_and_each_is_as_long_as_it_may_be(
    examples: list[Example], piece_rows: int, turn_rows: int
) -> None:
    batch = PolicyBatch("p", examples, PLAIN)
    pieces = list(plan_pieces(batch, piece_rows))
    agenda, turns = Agenda(plan_pieces(batch, piece_rows)), list[list[Piece]]()
    while not agenda.done:
        turns.append(list(agenda.turn(turn_rows)))
    found = [piece for turn in turns for piece in turn]
    assert len(found) == len(pieces)
    assert all(map(same, found, pieces))
    assert all(one.rows + other.rows > piece_rows for one, other in pairwise(pieces)), "no microbatch has two of them"
    for turn, following in zip_longest(turns, turns[1:]):
        rows = sum(piece.rows for piece in turn)
        assert turn
        assert rows <= turn_rows or len(turn) == 1
        assert following is None or rows + following[0].rows > turn_rows, "a turn less than there might be"
    learnt = [example for piece in found for example, _ in groupby(piece.entries.examples)]
    assert learnt == [number for number, each in enumerate(examples) if any(each.weights)], "whole examples, in order"


@given(_EXAMPLES, st.integers(1, 20))
def test_without_a_bound_one_turn_is_all_of_it(examples: list[Example], piece_rows: int) -> None:
    agenda = Agenda(plan_pieces(PolicyBatch("p", examples, PLAIN), piece_rows))
    assert agenda.done is not any(any(each.weights) for each in examples)
    assert sum(1 for _ in agenda.turn(0)) == len(list(plan_pieces(PolicyBatch("p", examples, PLAIN), piece_rows)))
    assert agenda.done


@given(_EXAMPLES)
def test_an_example_counts_as_the_rows_that_are_computed_of_it(examples: list[Example]) -> None:
    """Nothing after its last weighted token, and nothing of one that has none (a masked completion)."""
    for each in examples:
        assert rows_of(each) == sum(piece.rows for piece in plan_pieces(PolicyBatch("p", [each], PLAIN)))

"""The generic pass's attention masks over trees are correct, and use bounded memory however long the examples."""

import itertools
import weakref

import torch
from hypothesis import given
from hypothesis import strategies as st

from mint_engine.training.attend import KEPT_BYTES, first_seen, visible
from mint_engine.training.pieces import PIECE_ROWS
from tests.engine.device_double import CUDA, standing_in

LENGTHS = st.integers(0, 9)


@given(st.integers(1, 9), st.lists(LENGTHS, max_size=4), st.none() | st.integers(1, 12))
def test_a_row_sees_its_trunk_and_its_own_past_and_of_these_the_latest(
    trunk: int, branches: list[int], window: int | None
) -> None:
    rows = [(0, at) for at in range(trunk)]
    rows += [(branch, trunk + at) for branch, length in enumerate(branches, start=1) for at in range(length)]
    expected = [[ours in {0, mine} and 0 <= now - then < (window or 99) for ours, then in rows] for mine, now in rows]
    assert visible(trunk, tuple(branches), window).tolist() == expected
    for first, last in itertools.combinations(range(len(rows) + 1), 2):
        some = visible(trunk, tuple(branches), window, range(first, last))
        seen = [row[:last] for row in expected[first:last]]
        assert some.tolist() == seen, (first, last)
        least = first_seen(trunk, tuple(branches), window, range(first, last))
        assert least == (min(row.index(True) for row in seen) if window is not None else 0), (first, last)
        rest = visible(trunk, tuple(branches), window, range(first, last), first=least)
        assert rest.tolist() == [row[least:] for row in seen], (first, last)


def test_masks_of_long_examples_are_made_on_the_device() -> None:
    """By the host they took longer than all that a GPU computes; but a piece's is copied from there."""
    trunk, branches, rows = 900, (300, 7), range(850, 1207)
    with standing_in() as device:
        found = visible(trunk, branches, 400, rows, CUDA)
        assert not device.copies
        assert not device.waits
        assert torch.equal(found.cpu(), visible(trunk, branches, 400, rows))
        assert torch.equal(visible(3, (4, 5), device=CUDA).cpu(), visible(3, (4, 5)))
        assert device.copies


def test_masks_of_pieces_are_kept_within_a_bound_and_those_of_longer_examples_are_not() -> None:
    assert visible(3, (4, 5)) is visible(3, (4, 5)), "each layer asks for it again"
    masks = [weakref.ref(visible(1, (PIECE_ROWS + at,))) for at in range(4)]
    assert not any(mask() is not None for mask in masks)
    masks = [weakref.ref(visible(at, (PIECE_ROWS - at,))) for at in range(1, 100)]
    kept = sum(mask.nbytes for each in masks if (mask := each()) is not None)
    assert 0 < kept <= KEPT_BYTES

"""Garbage is collected between passes; objects that survive a pass are examined again only rarely."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from mint_operator.garbage import WHOLE_S, Garbage


class Ring:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def python_as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_cycles_of_a_pass_are_gone_when_it_has_ended() -> None:
    garbage = Garbage(clock=lambda: 0.0)
    ring = weakref.ref(Ring())
    garbage.collect()
    assert ring() is None


def test_what_lives_on_is_set_aside_until_the_look_at_everything() -> None:
    now = [0.0]
    garbage = Garbage(clock=lambda: now[0])
    ring = Ring()
    seen = weakref.ref(ring)
    garbage.collect()
    del ring
    garbage.collect()
    assert seen() is not None  # set aside while it was in use
    now[0] = WHOLE_S
    garbage.collect()
    assert seen() is None

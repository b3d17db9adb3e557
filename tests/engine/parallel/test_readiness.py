"""Answers from ranks and nodes are heard in whatever order they come: over real sockets."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest

from mint_contracts.errors import EngineUnavailable, NonFiniteWeights
from mint_engine.parallel import messages
from mint_engine.parallel.messages import Passes, Ready
from mint_engine.parallel.rank import expect_ready, refusal
from mint_engine.parallel.readiness import Readiness
from tests.waiting import join


class One:
    """A rank or node identified by its name; `said` is the end that it speaks at."""

    def __init__(self, name: str, *, there: bool = True) -> None:
        self.name, self._there = name, there
        self._heard, self.said = socket.socketpair()

    @property
    def answers(self) -> socket.socket | None:
        return self._heard if self._there else None

    def come(self) -> None:
        self._there = True

    def expect_ready(self, timeout_s: float | None) -> Sequence[Passes]:
        return expect_ready(self._heard, self.name, timeout_s)

    def close(self) -> None:
        self._heard.close()
        self.said.close()


@pytest.fixture
def three() -> Iterator[list[One]]:
    with ExitStack() as stack:
        found = [One(f"rank {number}") for number in (1, 2, 3)]
        for each in found:
            stack.callback(each.close)
        yield found


def test_all_are_waited_for(three: list[One]) -> None:
    readiness = Readiness(three)
    readiness.listen()
    for each in reversed(three):
        messages.send(each.said, Ready((Passes(three.index(each) + 1, "generic", ""),)))
        readiness.listen()
    assert [each.rank for each in readiness.hear_all(0.0)] == [3, 2, 1]


def test_a_refusal_is_heard_while_others_are_silent(three: list[One]) -> None:
    messages.send(three[1].said, Ready())
    messages.send(three[2].said, refusal(NonFiniteWeights("base b", "has NaN or infinity in w")))
    with pytest.raises(NonFiniteWeights, match="rank 3: base b: has NaN"):
        Readiness(three).hear_all(None)


def test_an_ended_rank_is_noticed_while_others_are_silent(three: list[One]) -> None:
    readiness = Readiness(three)
    three[1].said.close()
    with pytest.raises(EngineUnavailable, match="rank 2: of this engine has ended"):
        readiness.listen()


def test_a_rank_that_ends_after_it_was_ready_is_not_reported_again(three: list[One]) -> None:
    """Its own watcher notices, or the next request for an answer."""
    readiness = Readiness(three)
    messages.send(three[0].said, Ready())
    readiness.listen()
    three[0].said.close()
    readiness.listen()


def test_a_rank_that_is_silent_for_too_long_is_reported(three: list[One]) -> None:
    for each in three[:2]:
        messages.send(each.said, Ready())
    with pytest.raises(EngineUnavailable, match="rank 3: of this engine"):
        Readiness(three).hear_all(0.01)


def test_a_node_that_comes_late_is_heard(three: list[One]) -> None:
    late = One("node 1", there=False)
    messages.send(late.said, refusal(NonFiniteWeights("base b", "has NaN or infinity in w")))
    readiness = Readiness([*three, late])
    readiness.listen()
    coming = threading.Timer(0.01, late.come)
    coming.start()
    with pytest.raises(NonFiniteWeights, match="node 1"):
        readiness.hear_all(None)
    join(coming)
    late.close()

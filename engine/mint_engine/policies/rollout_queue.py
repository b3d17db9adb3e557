"""Who draws rollouts next: policies take turns, so that one which asks for thousands does not keep others waiting."""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

TURN = 256  # rollouts that a policy draws before others come: a whole step of an ordinary one, which then ends sooner

T = TypeVar("T")


@dataclass(frozen=True)
class Place(Generic[T]):
    """Somebody who waits for so many rollouts at once."""

    policy: str
    count: int
    who: T


class Line(Generic[T]):
    """Places by policy, each policy's own in their order; the first policy's first is next.

    A policy goes behind the others once it has drawn `turn` rollouts or more since its turn began: with P policies
    waiting, one that comes to wait is next after at most P - 1 turns, each of less than `turn` and one more group.
    """

    def __init__(self, turn: int = TURN) -> None:
        self._turn = turn
        self._waiting: dict[str, deque[Place[T]]] = {}  # in the order of turns
        self._drawn = 0  # by the first policy, in this turn

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def join(self, place: Place[T]) -> None:
        """Wait behind the policy's others."""
        self._waiting.setdefault(place.policy, deque()).append(place)

    @property
    def first(self) -> Place[T]:
        """Who is next. Only where somebody waits."""
        return next(iter(self._waiting.values()))[0]

    def admit(self) -> Place[T]:
        """Take the next one out of the line, to draw."""
        place = self.first
        own = self._waiting[place.policy]
        own.popleft()
        self._drawn += place.count
        if not own or self._drawn >= self._turn:
            del self._waiting[place.policy]
            self._drawn = 0
            if own:
                self._waiting[place.policy] = own
        return place

    def leave(self, place: Place[T]) -> None:
        """Give up waiting; who was admitted is not here any more."""
        own = self._waiting.get(place.policy)
        if own is None or place not in own:
            return
        if len(own) == 1:
            self._drawn = 0 if place is self.first else self._drawn
            del self._waiting[place.policy]
        else:
            own.remove(place)

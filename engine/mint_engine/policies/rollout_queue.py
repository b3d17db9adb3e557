"""Who draws rollouts next: policies take turns, so that one that asks for thousands does not keep others waiting."""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

TURN = 256  # rollouts per turn: a complete step of an ordinary policy, which then ends sooner

T = TypeVar("T")


@dataclass(frozen=True)
class QueuedGroup(Generic[T]):
    """A waiting request to draw `count` rollouts at once."""

    policy: str
    count: int
    who: T


class RolloutQueue(Generic[T]):
    """Waiting requests by policy, in order within each policy; the first policy's first request is next.

    A policy moves behind the others once it has drawn `turn` rollouts or more since its turn began. With P policies
    waiting, a new one is next after at most P - 1 turns, each of fewer than `turn` rollouts plus one group.
    """

    def __init__(self, turn: int = TURN) -> None:
        self._turn = turn
        self._waiting: dict[str, deque[QueuedGroup[T]]] = {}  # in order of their turns
        self._drawn = 0  # by the first policy, in this turn

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def join(self, group: QueuedGroup[T]) -> None:
        """Add a request behind the policy's others."""
        self._waiting.setdefault(group.policy, deque()).append(group)

    @property
    def first(self) -> QueuedGroup[T]:
        """The next request. The queue must not be empty."""
        return next(iter(self._waiting.values()))[0]

    def admit(self) -> QueuedGroup[T]:
        """Remove and return the next request."""
        group = self.first
        own = self._waiting[group.policy]
        own.popleft()
        self._drawn += group.count
        if not own or self._drawn >= self._turn:
            del self._waiting[group.policy]
            self._drawn = 0
            if own:
                self._waiting[group.policy] = own
        return group

    def leave(self, group: QueuedGroup[T]) -> None:
        """Remove a request that gives up; does nothing if it was already admitted."""
        own = self._waiting.get(group.policy)
        if own is None or group not in own:
            return
        if len(own) == 1:
            self._drawn = 0 if group is self.first else self._drawn
            del self._waiting[group.policy]
        else:
            own.remove(group)

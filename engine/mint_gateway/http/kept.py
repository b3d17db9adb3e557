"""What is kept of an answer until it is told whole: as it came over the wire, a tenth of what events take in Python.

A gateway keeps as many of these as it has requests in flight, so that all of them together are bounded, too.
"""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Self

from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.sampling_pb2 import GenerateEvent, Started

MOST_BYTES = 8 << 20  # of one answer: half a million tokens, or 20,000 with twenty log-probabilities each
MOST_TOGETHER = 128 << 20  # in memory, of what answers take beyond OWN_BYTES each; the chart gives a gateway 512 MiB
OWN_BYTES = 32 << 10  # of each answer, whatever others take: some hundred tokens
_EVENT_BYTES = 48  # that Python takes beside an event's own


class Room:
    """Memory that answers share."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, more: int) -> None:
        """Give so many bytes to an answer, or take them back where it is less than nothing. Raises Overloaded."""
        if more > 0 and self.taken + more > MOST_TOGETHER:
            said = f"keeps {MOST_TOGETHER >> 20} MiB of answers that are to be told whole; ask for a stream, or come"
            raise Overloaded("gateway", f"{said} back later", retry_after_s=1.0)
        self.taken += more


class Kept:
    """The events of one HTTP request's prompts, in the order in which they came, and then what they are told as.

    It takes room until the block ends.
    """

    def __init__(self, room: Room) -> None:
        self._room, self._taken = room, 0
        self._started: dict[int, bytes] = {}  # by prompt
        self._events: list[bytes] = []
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fill(0)

    async def take(self, prompt: int, event: GenerateEvent) -> None:
        """Keep what comes of a prompt. Raises CapacityExceeded or Overloaded where that becomes too much."""
        told = event.SerializeToString()
        self.size += len(told)
        if self.size > MOST_BYTES:
            said = f"takes more than {MOST_BYTES >> 20} MiB to be told whole; ask for a stream"
            raise CapacityExceeded("answer", f"{said}, or for fewer tokens or log-probabilities")
        if event.HasField("started"):
            self._started[prompt] = told
        else:
            self._events.append(told)
        self._fill(self.size + _EVENT_BYTES * len(self._events))

    def started(self) -> Mapping[int, Started]:
        """How each prompt's answer began."""
        return {prompt: GenerateEvent.FromString(told).started for prompt, told in self._started.items()}

    def events(self) -> Iterator[GenerateEvent]:
        """All that came of them since."""
        return map(GenerateEvent.FromString, self._events)

    def told_as(self, body: bytes) -> None:
        """Keep this in place of what it tells. Raises Overloaded where that is too much."""
        self._started, self._events = {}, []
        self._fill(len(body))

    def _fill(self, size: int) -> None:
        taken = max(0, size - OWN_BYTES)
        self._room.take(taken - self._taken)
        self._taken = taken

"""What is kept of an answer until it is told whole: as it came over the wire, a tenth of what events take in Python.

A gateway keeps as many of these as it has requests in flight, so that all of them together are bounded, too.
"""

from collections.abc import Iterator, Mapping

from mint_contracts.errors import CapacityExceeded
from mint_contracts.room import Part
from mint_contracts.sampling_pb2 import GenerateEvent, Started

MOST_BYTES = 8 << 20  # of one answer: half a million tokens, or 20,000 with twenty log-probabilities each
_EVENT_BYTES = 48  # that Python takes beside an event's own


class BufferedAnswer:
    """The events of one HTTP request's prompts, in the order in which they came, and then the body made of them.

    They are in a part of the room for such.
    """

    def __init__(self, part: Part) -> None:
        self._part = part
        self._started: dict[int, bytes] = {}  # by prompt
        self._events: list[bytes] = []
        self.size = 0

    async def take(self, prompt: int, event: GenerateEvent) -> None:
        """Keep what comes of a prompt. Raises CapacityExceeded or Overloaded where that becomes too much."""
        encoded = event.SerializeToString()
        self.size += len(encoded)
        if self.size > MOST_BYTES:
            message = f"is larger than {MOST_BYTES >> 20} MiB, the most that is sent without a stream; ask for one"
            raise CapacityExceeded("answer", f"{message}, or for fewer tokens or log-probabilities")
        if event.HasField("started"):
            self._started[prompt] = encoded
        else:
            self._events.append(encoded)
        self._part.fill(self.size + _EVENT_BYTES * len(self._events))

    def started(self) -> Mapping[int, Started]:
        """How each prompt's answer began."""
        return {prompt: GenerateEvent.FromString(encoded).started for prompt, encoded in self._started.items()}

    def events(self) -> Iterator[GenerateEvent]:
        """All that came of them since."""
        return map(GenerateEvent.FromString, self._events)

    def replace_with(self, body: bytes) -> None:
        """Keep this body in place of the events. Raises Overloaded where that is too much."""
        self._started, self._events = {}, []
        self._part.fill(len(body))

"""What is kept of an answer until it is told whole: as it came over the wire, a tenth of what events take in Python.

A gateway keeps as many of these as it has requests in flight.
"""

from collections.abc import Iterator, Mapping

from mint_contracts.errors import CapacityExceeded
from mint_contracts.sampling_pb2 import GenerateEvent, Started

MOST_BYTES = 8 << 20  # of one answer: half a million tokens, or 20,000 with twenty log-probabilities each


class Kept:
    """The events of one HTTP request's prompts, in the order in which they came."""

    def __init__(self) -> None:
        self._started: dict[int, bytes] = {}  # by prompt
        self._events: list[bytes] = []
        self.size = 0

    async def take(self, prompt: int, event: GenerateEvent) -> None:
        """Keep what comes of a prompt. Raises CapacityExceeded where that becomes too much."""
        told = event.SerializeToString()
        self.size += len(told)
        if self.size > MOST_BYTES:
            said = f"takes more than {MOST_BYTES >> 20} MiB to be told whole; ask for a stream"
            raise CapacityExceeded("answer", f"{said}, or for fewer tokens or log-probabilities")
        if event.HasField("started"):
            self._started[prompt] = told
        else:
            self._events.append(told)

    def started(self) -> Mapping[int, Started]:
        """How each prompt's answer began."""
        return {prompt: GenerateEvent.FromString(told).started for prompt, told in self._started.items()}

    def events(self) -> Iterator[GenerateEvent]:
        """All that came of them since."""
        return map(GenerateEvent.FromString, self._events)

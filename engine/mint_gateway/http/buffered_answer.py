"""An answer buffered until it is sent as a whole. Events are kept serialized, a tenth of their size in Python.

A gateway may keep one for each request in flight, so their total is bounded too.
"""

from collections.abc import Iterator, Mapping

from mint_contracts.byte_budget import ByteShare
from mint_contracts.errors import CapacityExceeded
from mint_contracts.sampling_pb2 import GenerateEvent, Started

MOST_BYTES = 8 << 20  # of one answer: half a million tokens, or 20,000 with twenty log-probabilities each
_EVENT_BYTES = 48  # Python's overhead for an event


class BufferedAnswer:
    """The events of one HTTP request's prompts in order of arrival, and later the response body made from them.

    Their memory is accounted for in `share`.
    """

    def __init__(self, share: ByteShare) -> None:
        self._share = share
        self._started: dict[int, bytes] = {}  # by prompt
        self._events: list[bytes] = []
        self.size = 0

    async def take(self, prompt: int, event: GenerateEvent) -> None:
        """Keep an event of a prompt. Raises CapacityExceeded if the answer gets too large, Overloaded if all do."""
        encoded = event.SerializeToString()
        self.size += len(encoded)
        if self.size > MOST_BYTES:
            message = f"is larger than {MOST_BYTES >> 20} MiB, the most that is sent without a stream; ask for one"
            raise CapacityExceeded("answer", f"{message}, or for fewer tokens or log-probabilities")
        if event.HasField("started"):
            self._started[prompt] = encoded
        else:
            self._events.append(encoded)
        self._share.fill(self.size + _EVENT_BYTES * len(self._events))

    def started(self) -> Mapping[int, Started]:
        """Return each prompt's Started."""
        return {prompt: GenerateEvent.FromString(encoded).started for prompt, encoded in self._started.items()}

    def events(self) -> Iterator[GenerateEvent]:
        """Iterate over all other events."""
        return map(GenerateEvent.FromString, self._events)

    def replace_with(self, body: bytes) -> None:
        """Keep this body instead of the events. Raises Overloaded if there is no room."""
        self._started, self._events = {}, []
        self._share.fill(len(body))

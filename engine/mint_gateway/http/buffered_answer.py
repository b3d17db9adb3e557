"""An answer buffered until it is sent as a whole. Events are kept serialized, a tenth of their size in Python.

A gateway may keep one for each request in flight, so their total is bounded too.
"""

from collections.abc import Iterator, Mapping

from mint_contracts.byte_budget import ByteShare
from mint_contracts.errors import CapacityExceeded
from mint_contracts.sampling_pb2 import GenerateEvent, Started

# Of one answer: half a million tokens, or 20,000 with twenty log-probabilities each. As JSON in Python these take ten
# times as much.
MOST_BYTES = 8 << 20
_EVENT_BYTES = 48  # Python's overhead for an event


class BufferedAnswer:
    """The events of one HTTP request's prompts in order of arrival, and later the response body made from them.

    Their memory is accounted for in `share`. What is told of a prompt comes before each of its `completions`.
    """

    def __init__(self, share: ByteShare, completions: int) -> None:
        self._share, self._completions = share, completions
        self._started: dict[int, bytes] = {}  # by prompt
        self._events: list[bytes] = []
        self.size = 0

    async def take(self, prompt: int, event: GenerateEvent) -> None:
        """Keep an event of a prompt. Raises CapacityExceeded if the answer gets too large, Overloaded if all do."""
        encoded = event.SerializeToString()
        self.size += len(encoded) * (self._completions if event.HasField("started") else 1)
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

"""What a client has of an answer, so that another engine can go on with it if the one that began it is lost."""

from array import array
from collections import defaultdict
from functools import partial

from mint_contracts import sampling_pb2
from mint_contracts.byte_budget import ByteShare
from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.sampling_pb2 import GenerateEvent, GenerateRequest

_TOKEN_BYTES = 5  # of an array that grows


class Begun:
    """The answer to one request so far."""

    def __init__(self, request: GenerateRequest, share: ByteShare, request_bytes: int) -> None:
        """`share` is what the request takes of the gateway's memory, `request_bytes` of it for itself."""
        self._share, self._request_bytes = share, request_bytes
        self._count = max(1, request.sampling.n)  # of completions; any number, until an engine has checked it
        self._tokens: defaultdict[int, array[int]] = defaultdict(partial(array, "i"))  # by completion
        self._finished: set[int] = set()
        self._revision = self._base_source = ""
        self._kept = _may_be_kept(request.sampling)
        self.lost = ""  # the engine that was lost, until another one goes on

    @property
    def complete(self) -> bool:
        """Whether every completion has its Finished."""
        return len(self._finished) == self._count

    @property
    def may_go_on(self) -> bool:
        """Whether another engine can go on with it. Engines of versions that cannot name no source of their base."""
        return self._kept and self._base_source != ""

    def note(self, event: GenerateEvent) -> None:
        """Note an event that the client gets. If there is no memory for its tokens, the answer cannot go on."""
        if event.HasField("started"):
            self._revision, self._base_source = event.started.revision, event.started.base_source
        elif event.HasField("finished"):
            self._finished.add(event.finished.index)
        elif event.HasField("chunk") and self._kept:
            self._tokens[event.chunk.index].extend(event.chunk.token_ids)
            try:
                self._share.fill(self._request_bytes + _TOKEN_BYTES * sum(map(len, self._tokens.values())))
            except (CapacityExceeded, Overloaded):
                self._kept = False
                self._tokens.clear()
                self._share.fill(self._request_bytes)

    def write(self, request: GenerateRequest) -> None:
        """Write it into its request, for an engine to go on."""
        request.begun.CopyFrom(
            sampling_pb2.Begun(
                revision=self._revision,
                base_source=self._base_source,
                completions=[
                    sampling_pb2.BegunCompletion(token_ids=self._tokens[index], finished=index in self._finished)
                    for index in range(self._count)
                ],
            )
        )


def _may_be_kept(sampling: sampling_pb2.SamplingParams) -> bool:
    """Return whether an answer can be made of two parts: not routes, nor none but the prompt's own."""
    prompt_only = sampling.HasField("max_tokens") and not sampling.max_tokens
    return not sampling.routes and not prompt_only

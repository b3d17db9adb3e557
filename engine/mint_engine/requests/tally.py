"""Counts a request in the engine's metrics."""

import time

from mint_contracts.sampling_pb2 import Finished, GenerateEvent
from mint_engine import metrics
from mint_engine.requests.request import CheckedRequest


class Tally:
    """Counts one request from its arrival, when this is made, to `close`. `outcome` says how it ended."""

    def __init__(self) -> None:
        self.outcome = "cancelled"
        self._arrived = time.monotonic()
        self._answered = False
        self._finished = 0

    def count(self, event: GenerateEvent, asked: CheckedRequest) -> None:
        """Count one of the request's events."""
        kind = event.WhichOneof("event")
        if kind not in {"chunk", "finished"}:
            return
        if not self._answered:  # a request for no tokens has only an end
            self._answered = True
            metrics.TOKENS.labels("prompt").inc(len(asked.prompt))
            if kind == "chunk":
                metrics.FIRST_TOKEN.observe(time.monotonic() - self._arrived)
        if kind == "chunk":
            metrics.TOKENS.labels("completion").inc(len(event.chunk.token_ids))
        else:
            self._finish(event.finished, len(asked.going_on))

    def _finish(self, finished: Finished, completions: int) -> None:
        self._finished += 1
        if self._finished == 1:
            metrics.TOKENS.labels("cached").inc(finished.cached_tokens)
        if self._finished == completions:
            self.outcome = Finished.Reason.Name(finished.reason).lower()

    def close(self) -> None:
        """Count the request as ended."""
        metrics.REQUESTS.labels(self.outcome).inc()
        metrics.DURATION.observe(time.monotonic() - self._arrived)

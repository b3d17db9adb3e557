"""A client's connection to a gateway, or to one engine."""

from typing import TypeVar

import grpc

from mint_gateway.dialling import Trust, bearing, dial, is_hopeless
from mint_gateway.persistence import Persistence, Tell
from mint_gateway.retries import may_have_it

CALL_TIMEOUT_S = 10.0  # for one attempt

Q = TypeVar("Q")
A = TypeVar("A")


class Connection:
    """One channel, over TLS if `trust` is given. `metadata` carries the key, if there is one."""

    def __init__(
        self, target: str, patience_s: float, trust: Trust | None, key: str, tell: Tell | None = None
    ) -> None:
        """Transient errors are retried for `patience_s`, unless the server is not the one meant (`is_hopeless`).

        `tell` is called once for each call that is retried for longer than a moment.
        """
        self.metadata = bearing(key)
        self.target, self._trust, self._patience_s, self._tell = target, trust, patience_s, tell
        self.channel = dial(target, trust)

    def patience(self) -> Persistence:
        """Return what decides whether and when one call is retried."""
        return Persistence(self._patience_s, lambda error: is_hopeless(error, self.target, self._trust), self._tell)

    async def call(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Q, A]", request: Q, timeout_s: float = CALL_TIMEOUT_S
    ) -> A:
        """Return a call's answer, with at most `timeout_s` for each attempt. Raises MintError."""
        answer, _ = await self.call_told(method, request, timeout_s)
        return answer

    async def call_told(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Q, A]", request: Q, timeout_s: float
    ) -> tuple[A, bool]:
        """Return a call's answer as `call` does, and whether an earlier attempt may have been executed."""
        patience, sent_before = self.patience(), False
        while True:
            try:
                return await method(request, timeout=timeout_s, metadata=self.metadata), sent_before
            except grpc.aio.AioRpcError as error:
                await patience.wait(error)
                sent_before = sent_before or may_have_it(error)

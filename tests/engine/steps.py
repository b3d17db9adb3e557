"""Hold the step thread of a running engine between two steps, and collect refusals."""

import asyncio
import threading
from typing import Any

import grpc
import pytest

from mint_contracts.errors import MintError
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_contracts.wire import from_rpc_error
from tests.engine.running import Running, collect

LONG = 150  # new tokens: far more than a test waits for


async def refusal(engine: Running, request: GenerateRequest) -> MintError:
    """Return the MintError that a request ends with."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(engine, request)
    return from_rpc_error(caught.value)


class Gate:
    """Holds the step thread between two steps, so that the test decides what happens meanwhile."""

    def __init__(self, engine: Running, after: int = 0) -> None:
        self._left = after
        self._generation = engine.server.generation
        self._step = self._generation.step
        self._open = threading.Event()
        self.reached = threading.Event()
        self._generation.step = self._gated  # type: ignore[method-assign]

    def _gated(self) -> list[Any]:
        if self._left == 0:
            self.reached.set()
            assert self._open.wait(60)
        self._left = max(0, self._left - 1)
        return self._step()

    async def closed(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 60)

    def open(self) -> None:
        self._open.set()

"""One gRPC channel per engine address, kept while the map names it or a request uses it."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import grpc

from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_contracts.training_pb2_grpc import TrainerStub
from mint_contracts.transport import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from mint_contracts.sampling_pb2_grpc import SamplerAsyncStub  # known to the stubs alone
    from mint_contracts.training_pb2_grpc import TrainerAsyncStub

CONNECT_TIMEOUT_MS = 1500
MAX_MESSAGE_BYTES = 64 << 20  # log-probabilities of a long prompt come in one event

_OPTIONS = [
    *CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also bounds one attempt to connect: a node that vanished refuses nothing, it is just silent.
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),  # the router retries, on another engine
    ("grpc.use_local_subchannel_pool", 1),  # a new channel starts afresh, without another's backoff
    ("grpc.enable_http_proxy", 0),  # engines are pods beside us: a proxy for what is outside can't reach them
]


class Stubs(NamedTuple):
    """What an engine can be asked."""

    sampler: "SamplerAsyncStub"
    trainer: "TrainerAsyncStub"


class _Entry:
    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.stubs = Stubs(SamplerStub(self.channel), TrainerStub(self.channel))
        self.users = 0


class Channels:
    """Channels by address. Not for more than one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._wanted: frozenset[str] = frozenset()
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def use(self, address: str) -> AsyncIterator[Stubs]:
        """Stubs for the address; their channel outlives the block, and the map's word, but not both."""
        entry = self._entries.get(address)
        if entry is None:
            entry = self._entries[address] = _Entry(address)
        entry.users += 1
        try:
            yield entry.stubs
        finally:
            entry.users -= 1
            self._drop_unused()

    def broken(self, address: str) -> bool:
        """True if the last attempt to connect failed and none has succeeded since."""
        entry = self._entries.get(address)
        return entry is not None and entry.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def keep(self, addresses: Collection[str]) -> None:
        """Let go of every other address, as soon as no request uses it."""
        self._wanted = frozenset(addresses)
        self._drop_unused()

    async def close(self) -> None:
        """Close everything, requests in flight included."""
        entries, self._entries = self._entries, {}
        await asyncio.gather(*self._closing, *(entry.channel.close() for entry in entries.values()))

    def _drop_unused(self) -> None:
        for address in [a for a, entry in self._entries.items() if a not in self._wanted and not entry.users]:
            task = asyncio.get_running_loop().create_task(self._entries.pop(address).channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

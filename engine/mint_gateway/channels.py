"""One gRPC channel per engine address, kept while the placement map names the address or a request uses it."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import grpc

from mint_contracts.engine_pb2_grpc import EngineStub
from mint_contracts.sampling_pb2_grpc import SamplerStub
from mint_contracts.training_pb2_grpc import TrainerStub
from mint_contracts.transport import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from mint_contracts.engine_pb2_grpc import EngineAsyncStub  # exists only in the type stubs, like the others
    from mint_contracts.sampling_pb2_grpc import SamplerAsyncStub
    from mint_contracts.training_pb2_grpc import TrainerAsyncStub

CONNECT_TIMEOUT_MS = 1500
MAX_MESSAGE_BYTES = 64 << 20  # the log-probabilities of a long prompt arrive in one event

_OPTIONS = [
    *CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also bounds one connection attempt: a node that vanished does not refuse connections, it is silent.
    ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.http2.bdp_probe", 0),  # else it takes four megabytes of each answer before its client reads them
    ("grpc.enable_retries", 0),  # the router retries, on another engine
    ("grpc.use_local_subchannel_pool", 1),  # a new channel does not inherit another channel's backoff
    ("grpc.enable_http_proxy", 0),  # engines are pods of this cluster: a proxy for external hosts can't reach them
]


class Stubs(NamedTuple):
    """The client stubs of one engine's services."""

    sampler: "SamplerAsyncStub"
    trainer: "TrainerAsyncStub"
    engine: "EngineAsyncStub"


class _Entry:
    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self.stubs = Stubs(SamplerStub(self.channel), TrainerStub(self.channel), EngineStub(self.channel))
        self.users = 0


class Channels:
    """Channels by engine address. An instance belongs to one event loop."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._wanted: frozenset[str] = frozenset()
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def use(self, address: str) -> AsyncIterator[Stubs]:
        """Yield the stubs for an address. Their channel stays open while a block uses it or `keep` names it."""
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
        """Return whether the last connection attempt failed and none has succeeded since."""
        entry = self._entries.get(address)
        return entry is not None and entry.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def keep(self, addresses: Collection[str]) -> None:
        """Close the channel of every other address, as soon as no request uses it."""
        self._wanted = frozenset(addresses)
        self._drop_unused()

    async def close(self) -> None:
        """Close all channels, including those with requests in flight."""
        entries, self._entries = self._entries, {}
        await asyncio.gather(*self._closing, *(entry.channel.close() for entry in entries.values()))

    def _drop_unused(self) -> None:
        for address in [a for a, entry in self._entries.items() if a not in self._wanted and not entry.users]:
            task = asyncio.get_running_loop().create_task(self._entries.pop(address).channel.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

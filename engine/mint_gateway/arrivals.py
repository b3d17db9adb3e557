"""Bounds the gRPC requests that have not arrived completely: gRPC keeps what has come of each, up to its full size.

Without this, one client could send all but the last byte of many requests, and so use up a gateway's memory for good.
A request is only received once it has a place, and gRPC takes no more than 64 KiB of it before. Most have arrived by
then; those that take long need one of other places, so that they do not hold up the rest.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from mint_contracts.errors import InvalidRequest, MintError, Overloaded
from mint_contracts.wire import to_status
from mint_gateway.guard import OPEN
from mint_gateway.keys import caller

PLACES = 16  # of at most 8 MiB each, and as many more for requests that take long
OPEN_PLACES = 4  # of calls that need no key: these must not take the others' places
WAITING = 2048  # requests that wait for a place, with at most 64 KiB of each: as many as may be in flight
WAIT_S = 30.0  # for a place
LONG_S = 1.0
ARRIVAL_S = 30.0  # for a request that takes long

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

_Context = grpc.aio.ServicerContext[Any, Any]
_Answer = Callable[[Any, _Context], Awaitable[Any]]


class Places:
    """Places for requests that are arriving. A client may take as many as it leaves free, so others find some."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._taken: Counter[str] = Counter()
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}  # by client, in order

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Occupy a place during the block, after the client's earlier requests.

        Raises Overloaded after WAIT_S, or at once if too many wait.
        """
        if client in self._waiting or not self._has_room(client):
            await self._wait(client)
        else:
            self._take(client)
        try:
            yield
        finally:
            self._give_back(client)

    @contextmanager
    def place_at_once(self, client: str) -> Iterator[None]:
        """Occupy a place during the block. Raises Overloaded if the client may have none now."""
        if not self._has_room(client):
            raise _overloaded()
        self._take(client)
        try:
            yield
        finally:
            self._give_back(client)

    def _has_room(self, client: str) -> bool:
        return self._taken[client] < self._free

    def _take(self, client: str) -> None:
        self._free -= 1
        self._taken[client] += 1

    def _give_back(self, client: str) -> None:
        self._free += 1
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
        for each, turns in list(self._waiting.items()):
            while turns and self._has_room(each):
                turn = next(iter(turns))
                del turns[turn]
                self._take(each)
                turn.set_result(None)
            if not turns:
                del self._waiting[each]

    async def _wait(self, client: str) -> None:
        if sum(map(len, self._waiting.values())) >= WAITING:
            raise _overloaded()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, {})[turn] = None
        try:
            async with asyncio.timeout(WAIT_S):
                await asyncio.shield(turn)
        except BaseException as error:
            if turn.done():
                self._give_back(client)
            else:
                self._leave(client, turn)
            if isinstance(error, TimeoutError):
                raise _overloaded() from None
            raise

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting[client]
        del turns[turn]
        if not turns:
            del self._waiting[client]


def _overloaded() -> Overloaded:
    return Overloaded("gateway", "too many requests are still arriving; retry later", retry_after_s=1.0)


class _Room:
    """Places for requests that arrive soon, and for those that take long."""

    def __init__(self, count: int) -> None:
        self._soon, self._long = Places(count), Places(count)

    async def receive(self, context: _Context) -> Any:
        """Return the call's next request, or EOF. Raises Overloaded, or InvalidRequest if it takes too long."""
        client = caller.get() or context.peer().rpartition(":")[0]
        async with self._soon.place(client):
            reading: asyncio.Future[Any] = asyncio.ensure_future(context.read())
            try:
                await asyncio.wait({reading}, timeout=LONG_S)
            except asyncio.CancelledError:
                reading.cancel()
                raise
        try:
            if reading.done():
                return reading.result()
            with self._long.place_at_once(client):
                async with asyncio.timeout(ARRIVAL_S):
                    return await reading
        except TimeoutError:
            message = f"did not arrive in full within {ARRIVAL_S:g} s; send it again"
            raise InvalidRequest("request", message) from None
        finally:
            reading.cancel()


class Arrivals(grpc.aio.ServerInterceptor):
    """Receives calls' requests itself. A registration's stream is left to its servicer, which admits only a few."""

    def __init__(self) -> None:
        self._keyed, self._open = _Room(PLACES), _Room(OPEN_PLACES)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return the call's handler as one of a stream, of which it reads one request, or reflection's all."""
        handler = await continuation(handler_call_details)
        is_open = handler_call_details.method.startswith(OPEN)
        if handler is None or (handler.request_streaming and not is_open):
            return handler
        room, codec = (
            self._open if is_open else self._keyed,
            (handler.request_deserializer, handler.response_serializer),
        )
        answer: Any = handler.unary_unary or handler.unary_stream or handler.stream_stream
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_conversing(answer, room), *codec)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(_single(answer, room), *codec)
        return grpc.stream_unary_rpc_method_handler(_single(answer, room), *codec)


def _single(answer: _Answer, room: _Room) -> Any:
    async def single(_: object, context: _Context) -> Any:
        request = await _received(context, room)
        if request is grpc.aio.EOF:
            await context.abort_with_status(to_status(InvalidRequest("request", "is missing; send one")))
        return await answer(request, context)

    return single


def _conversing(answer: Callable[[Any, _Context], AsyncIterator[Any]], room: _Room) -> Any:
    async def requests(context: _Context) -> AsyncIterator[Any]:
        while (request := await _received(context, room)) is not grpc.aio.EOF:
            yield request

    async def conversing(_: object, context: _Context) -> None:
        async for each in answer(requests(context), context):
            await context.write(each)

    return conversing


async def _received(context: _Context, room: _Room) -> Any:
    """Return the call's next request, or EOF. Aborts the call if it is not received."""
    try:
        return await room.receive(context)
    except MintError as error:
        await context.abort_with_status(to_status(error))
        raise  # unreachable: abort raises

"""Bounds the gRPC requests that have not arrived completely: gRPC keeps what has come of each, up to its full size.

Without this, one client could send all but the last byte of many requests, and so use up a gateway's memory for good.
A request is only received once it has a place, and gRPC takes no more than 64 KiB of it before. Of places, and of the
line before them, a client has at most as many as it leaves free, so however slow it is, others find some.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import grpc

from mint_contracts.errors import InvalidRequest, MintError, Overloaded, Unavailable
from mint_contracts.shares import Shares
from mint_contracts.wire import to_status
from mint_gateway.field_count import parsed
from mint_gateway.security.guard import OPEN
from mint_gateway.security.keys import sharer
from mint_gateway.unread import MOST_BYTES, OPEN_BYTES, Unread

# Together 144 MiB at most; tests/chart/test_gateway_memory.py compares all such bounds with the chart.
PLACES = 8  # of at most 8 MiB each
OPEN_PLACES = 4  # of calls that need no key: these must not take the others' places
WAITING = 64  # requests for each place, with at most 64 KiB of each
WAIT_S = 30.0  # for a place
ARRIVAL_S = 120.0  # for a request that has one: slow links are welcome, since time costs no memory
OPEN_ARRIVAL_S = 30.0
IDLE_S = 5.0  # for the next request of reflection: an idle stream occupies a place

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

_Context = grpc.aio.ServicerContext[Any, Any]
_Parse = Callable[[bytes], Any]
_Answer = Callable[[Any, _Context], Awaitable[Any]]
_Send = Callable[[Any, _Context], Awaitable[None]]
Receiving = Callable[[], AbstractContextManager[object]]


class Places:
    """Places for requests that are arriving, and a line of those that wait for one, in which clients take turns."""

    def __init__(self, count: int) -> None:
        self._places, self._line = Shares(count), Shares(WAITING * count)
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # by client; the next one's turn comes first

    @asynccontextmanager
    async def place(self, client: str) -> AsyncIterator[None]:
        """Occupy a place during the block, after the client's earlier requests.

        Raises Overloaded after WAIT_S, or at once if the client has its share of the line.
        """
        if client in self._waiting or not self._places.may_take(client):
            await self._wait(client)
        else:
            self._places.take(client)
        try:
            yield
        finally:
            self._give_back(client)

    def _give_back(self, client: str) -> None:
        self._places.give_back(client)
        for each in list(self._waiting):
            if self._places.may_take(each):
                self._places.take(each)
                turns = self._waiting.pop(each)
                turns.popleft().set_result(None)
                if turns:
                    self._waiting[each] = turns  # behind all others

    async def _wait(self, client: str) -> None:
        if not self._line.may_take(client):
            raise _overloaded()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.take(client)
        self._waiting.setdefault(client, deque()).append(turn)
        try:
            await asyncio.wait({turn}, timeout=WAIT_S)
        except asyncio.CancelledError:
            if turn.done():
                self._give_back(client)
            raise
        finally:
            self._line.give_back(client)
            if not turn.done():
                self._leave(client, turn)
        if not turn.done():
            raise _overloaded()

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        turns = self._waiting[client]
        turns.remove(turn)
        if not turns:
            del self._waiting[client]


def _overloaded() -> Overloaded:
    return Overloaded("gateway", "too many requests are still arriving; retry later", retry_after_s=1.0)


class _Room:
    """Places, and how long a request may occupy one."""

    def __init__(self, count: int, arrival_s: float) -> None:
        self._places, self._arrival_s = Places(count), arrival_s

    async def receive(self, context: _Context, parse: _Parse) -> Any:
        """Return the call's next request, or EOF.

        Raises Overloaded, Unavailable if it takes too long, and InvalidRequest for too many fields.
        """
        async with self._places.place(_client(context)):
            try:
                async with asyncio.timeout(self._arrival_s):
                    data = await context.read()
                    return data if data is grpc.aio.EOF else await parsed(parse, data)
            except TimeoutError:
                message = f"did not arrive in full within {self._arrival_s:g} s; send it again, and fewer at a time"
                raise Unavailable("request", message, retry_after_s=1.0) from None


class Arrivals(grpc.aio.ServerInterceptor):
    """Receives calls' requests itself, and parses only those that do not take far more memory than they arrived with.

    A registration's stream is left to its servicer, which admits only a few.
    """

    def __init__(self, receiving: Mapping[str, Receiving]) -> None:
        """`receiving` returns, by method, a context in which a call's request is received."""
        self._keyed, self._open = _Room(PLACES, ARRIVAL_S), _Room(OPEN_PLACES, OPEN_ARRIVAL_S)
        self._keyed_unread, self._open_unread = Unread(MOST_BYTES), Unread(OPEN_BYTES)
        self._receiving = receiving

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Return the call's handler as one of a stream, of which it reads one request, or reflection's all."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        is_open = handler_call_details.method.startswith(OPEN)
        room, unread = (self._open, self._open_unread) if is_open else (self._keyed, self._keyed_unread)
        parse, register = cast("Any", handler.request_deserializer), cast("Any", handler.stream_unary)
        encode = cast("Any", handler.response_serializer)
        if handler.request_streaming and not is_open:
            return grpc.stream_unary_rpc_method_handler(_streaming(register, parse), None, encode)
        sent = _sent(unread, encode)
        answer: Any = handler.unary_unary or handler.unary_stream or handler.stream_stream
        if handler.request_streaming:
            conversing = _conversing(answer, room, parse, sent)
            return grpc.stream_stream_rpc_method_handler(_held(conversing, unread, nullcontext))
        receiving = self._receiving.get(handler_call_details.method, nullcontext)
        single = _single(answer, room, parse, receiving)
        if handler.response_streaming and is_open:  # health bounds its own streams
            return grpc.stream_stream_rpc_method_handler(single, None, encode)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(_held(single, unread, receiving), None, encode)
        return grpc.stream_stream_rpc_method_handler(_held(_answering(single, sent), unread, receiving))


def _streaming(register: _Answer, parse: _Parse) -> Any:
    async def requests(arriving: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        async for data in arriving:
            yield await parsed(parse, data)

    async def streaming(arriving: AsyncIterator[bytes], context: _Context) -> Any:
        return await register(requests(arriving), context)

    return streaming


def _single(answer: _Answer, room: _Room, parse: _Parse, receiving: Receiving) -> Any:
    async def single(_: object, context: _Context) -> Any:
        request = await _received(context, room, parse, receiving)
        if request is grpc.aio.EOF:
            await context.abort_with_status(to_status(InvalidRequest("request", "is missing; send one")))
        return await answer(request, context)

    return single


def _held(call: _Answer, unread: Unread, receiving: Receiving) -> Any:
    """Return a call that is accounted for until it ends: also while its client reads nothing.

    One that finds no room is refused before it is received: nothing is done whose answer cannot be sent.
    """

    async def held(_: object, context: _Context) -> None:
        with ExitStack() as holding:
            try:
                with receiving():
                    holding.enter_context(unread.held(_client(context)))
            except Overloaded as error:
                await context.abort_with_status(to_status(error))
            await call(_, context)

    return held


def _sent(unread: Unread, encode: Callable[[Any], bytes]) -> _Send:
    async def sent(answer: Any, context: _Context) -> None:
        data = encode(answer)
        del answer  # in Python it takes three times as much
        await unread.send(data, _client(context), context)

    return sent


def _answering(single: _Answer, sent: _Send) -> Any:
    """Return a stream of the one answer, which is the same to its client."""

    async def answering(_: object, context: _Context) -> None:
        await sent(await single(_, context), context)

    return answering


def _conversing(
    answer: Callable[[Any, _Context], AsyncIterator[Any]], room: _Room, parse: _Parse, sent: _Send
) -> Any:
    async def requests(context: _Context) -> AsyncIterator[Any]:
        request = await _received(context, room, parse)
        while request is not grpc.aio.EOF:
            yield request
            try:
                async with asyncio.timeout(IDLE_S):
                    request = await _received(context, room, parse)
            except TimeoutError:
                return

    async def conversing(_: object, context: _Context) -> None:
        async for each in answer(requests(context), context):
            await sent(each, context)

    return conversing


def _client(context: _Context) -> str:
    """Return whose call it is: a key's or, if there are not several, an address's."""
    return sharer.get() or context.peer().rpartition(":")[0]


async def _received(context: _Context, room: _Room, parse: _Parse, receiving: Receiving = nullcontext) -> Any:
    """Return the call's next request, or EOF. Aborts the call if it is not received."""
    try:
        with receiving():
            return await room.receive(context, parse)
    except MintError as error:
        await context.abort_with_status(to_status(error))
        raise  # unreachable: abort raises

"""One answer as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import time

import grpc
import msgspec
from aiohttp import web

from mint_contracts.errors import MintError
from mint_contracts.sampling_pb2 import Finished, GenerateEvent, GenerateRequest
from mint_gateway.answering import Answering
from mint_gateway.http import answered, asked
from mint_gateway.http.refusing import ours

REQUEST_ID = "X-Request-Id"


class Stream:
    """An answer. Its headers go with the first token: until then a refusal has a status of its own."""

    def __init__(self, http: web.Request, form: answered.Form, wanted: asked.Asked) -> None:
        self._http, self._form, self._wanted = http, form, wanted
        self._response = web.StreamResponse()
        self._head: answered.Head
        self._ends: list[Finished] = []

    async def run(self, answering: Answering, request: GenerateRequest) -> web.StreamResponse:
        """Answer to the end; an error after the first token is the last event."""
        self._response.headers.update(
            {
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",  # nginx would keep tokens back
                REQUEST_ID: request.request_id,
            }
        )
        try:
            await answering.answer(request, self._send, None)
        except (MintError, grpc.aio.AioRpcError) as error:
            if not self._response.prepared:
                raise
            await self._write(answered.refusal(ours(error)))
        else:
            if self._wanted.stream_options.include_usage:
                await self._write(answered.counts(self._head, self._ends))
        await self._response.write(b"data: [DONE]\n\n")
        await self._response.write_eof()
        return self._response

    async def _send(self, event: GenerateEvent) -> None:
        if event.HasField("started"):
            self._head = answered.Head(self._form, self._wanted.model, int(time.time()), event.started)
            await self._response.prepare(self._http)
            for piece in answered.beginning(self._head, self._wanted.n):
                await self._write(piece)
        elif event.HasField("chunk"):
            await self._write(answered.chunk(self._head, event.chunk))
        else:
            self._ends.append(event.finished)
            await self._write(answered.end(self._head, event.finished))

    async def _write(self, piece: answered.Json) -> None:
        await self._response.write(b"data: " + msgspec.json.encode(piece) + b"\n\n")

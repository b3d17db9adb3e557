"""One answer as server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial

import grpc
import msgspec
from aiohttp import web

from mint_contracts.errors import MintError
from mint_contracts.sampling_pb2 import Chunk, Finished, GenerateEvent, GenerateRequest, TokenLogprob
from mint_gateway.answering import Answering
from mint_gateway.http import openai_request, openai_response, prompt_batch
from mint_gateway.http.calls import Call
from mint_gateway.http.error_middleware import REQUEST_ID, ours
from mint_gateway.http.parsing import Parser, Part, parsing, piece_of
from mint_gateway.http.tools import Tools
from mint_gateway.slow_clients import taken
from mint_gateway.time_slices import TimeSlices

QUIET_S = 10.0  # after which a comment is sent: many proxies cut a stream that is idle for 60 s
_COMMENT = b": generating\n\n"  # clients skip it


class Stream:
    """A streamed answer. Headers are sent with the first token, so that an earlier error has its own status."""

    def __init__(
        self,
        http: web.Request,
        form: openai_response.Form,
        wanted: openai_request.Delivery,
        tools: Tools,
        request_id: str,
        created: int,
    ) -> None:
        self._http, self._form, self._wanted, self._tools = http, form, wanted, tools
        self._request_id, self._created = request_id, created
        self._response = web.StreamResponse()
        self._preparing = asyncio.Lock()
        self._heads: dict[int, openai_response.Head] = {}  # by prompt
        self._before: dict[int, int] = {}  # by prompt, the characters echoed before its completions
        self._parsers: dict[int, Parser] = {}  # by completion, if it is parsed
        self._calls: Counter[int] = Counter()  # calls sent, by completion
        self._prompt_tokens: dict[int, int] = {}
        self._made: Counter[int] = Counter()  # tokens sent, by completion
        self._ends: list[Finished] = []
        self._wrote_at = 0.0  # the loop's time
        self._commenting: asyncio.Task[None] | None = None  # from the headers to the answer's end
        self._thoughts = 0  # tokens of thoughts in the completions that have ended

    async def run(self, answering: Answering, requests: Sequence[GenerateRequest]) -> web.StreamResponse:
        """Stream the complete answer. An error after the first token is sent as the last event."""
        self._response.headers.update(
            {
                "Content-Type": "text/event-stream",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",  # otherwise nginx would hold tokens back
                REQUEST_ID: self._request_id,
            }
        )
        try:
            await prompt_batch.answer(answering, requests, self._wanted.n, partial(self._send, requests))
        except (MintError, grpc.aio.AioRpcError) as error:
            if not self._response.prepared:
                raise
            await self._write(openai_response.refusal(ours(error)))
        else:
            if self._wanted.stream_options.include_usage:
                await self._write(self._counts())
        finally:
            if self._commenting is not None:
                self._commenting.cancel()
        await self._put(b"data: [DONE]\n\n")
        await taken(self._response.write_eof())
        return self._response

    async def _send(self, requests: Sequence[GenerateRequest], prompt: int, event: GenerateEvent) -> None:
        if event.HasField("started"):
            made = self._request_id, self._wanted.model, self._created
            self._heads[prompt] = openai_response.Head(
                self._form,
                *made,
                event.started.revision,
                parsing(self._tools, requests[prompt].chat.tools, event.started, shows=self._wanted.shows_thoughts),
                secrets.token_hex(),
            )
            await self._prepare()
            own = range(prompt * self._wanted.n, (prompt + 1) * self._wanted.n)
            echo = openai_response.echo(requests[prompt], event.started)
            self._before[prompt], self._prompt_tokens[prompt] = len(echo.text), event.started.prompt_tokens
            await self._tell(prompt, openai_response.beginning(self._heads[prompt], own, echo), 0)
        elif event.HasField("chunk"):
            self._made[event.chunk.index] += len(event.chunk.token_ids)
            pieces = self._chunk(self._heads[prompt], event.chunk, self._before[prompt])
            await self._tell(prompt, pieces, self._made[event.chunk.index])
        else:
            self._ends.append(event.finished)
            pieces = self._end(self._heads[prompt], event.finished)
            await self._tell(prompt, pieces, event.finished.completion_tokens)

    async def _tell(self, prompt: int, pieces: Iterable[openai_response.Json], made: int) -> None:
        """Send pieces of a completion that has `made` tokens so far."""
        options, usage, slices = self._wanted.stream_options, openai_response.Json(), TimeSlices()
        if options.include_usage and options.continuous_usage_stats:
            usage = openai_response.so_far(self._prompt_tokens[prompt], made)
        for piece in pieces:
            await self._write(piece | usage)
            await slices.rest()

    def _chunk(self, head: openai_response.Head, chunk: Chunk, before: int) -> list[openai_response.Json]:
        if head.parsing is None:
            return [openai_response.chunk(head, chunk, before)]
        parser = self._parsers.get(chunk.index) or self._parsers.setdefault(chunk.index, head.parsing.parser())
        return self._read(head, chunk.index, parser.push(piece_of(chunk)), chunk.logprobs)

    def _end(self, head: openai_response.Head, finished: Finished) -> list[openai_response.Json]:
        if head.parsing is None:
            return [openai_response.end(head, finished)]
        parser = self._parsers.pop(finished.index, None) or head.parsing.parser()
        rest = self._read(head, finished.index, parser.finish(cut=finished.reason == Finished.LENGTH))
        self._thoughts += parser.thought_tokens
        calls = self._calls[finished.index] > 0
        return [*rest, openai_response.end(head, finished, calls=calls, thought=parser.thought)]

    def _counts(self) -> openai_response.Json:
        return openai_response.counts(self._heads[0], self._ends, self._wanted.n, self._thoughts)

    def _read(
        self,
        head: openai_response.Head,
        index: int,
        parts: Sequence[Part],
        logprobs: Sequence[TokenLogprob] = (),
    ) -> list[openai_response.Json]:
        pieces = openai_response.read(head, index, parts, self._calls[index], logprobs)
        self._calls[index] += sum(isinstance(part, Call) for part in parts)
        return pieces

    async def _prepare(self) -> None:
        """Send the headers once, before the first prompt's tokens; other prompts wait until they are sent."""
        async with self._preparing:
            if not self._response.prepared:
                await self._response.prepare(self._http)
                self._wrote_at = asyncio.get_running_loop().time()
                self._commenting = asyncio.create_task(self._comment())

    async def _comment(self) -> None:
        """Send a comment whenever nothing else was sent for QUIET_S.

        Nothing of a hidden thought can be told, nor of a call before its end, and no tokens come while the engine has
        given the request's place to others. Each may take minutes.
        """
        loop = asyncio.get_running_loop()
        with suppress(ConnectionError):  # the answer's own pieces meet the same
            while True:
                await asyncio.sleep(self._wrote_at + QUIET_S - loop.time())
                if loop.time() >= self._wrote_at + QUIET_S:
                    await self._put(_COMMENT)

    async def _write(self, piece: openai_response.Json) -> None:
        await self._put(b"data: " + msgspec.json.encode(piece) + b"\n\n")

    async def _put(self, event: bytes) -> None:
        await taken(self._response.write(event))
        self._wrote_at = asyncio.get_running_loop().time()

"""Turns a request's events into the messages that a client gets."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import NamedTuple

from mint_contracts import sampling_pb2
from mint_engine.requests import routed
from mint_engine.requests.events import Done, Failed, PromptScored, Scored, Tokens
from mint_engine.requests.inbox import Inbox, Queued
from mint_engine.requests.request import CheckedRequest
from mint_engine.requests.spelling import Spelling

_AT_ONCE = 256  # tokens of a prompt written before yielding to the event loop: 3 ms with scores


class Served(NamedTuple):
    """What answers: an engine and its base."""

    engine: str
    base_model: str
    base_source: str  # see `begun`


async def answer(
    asked: CheckedRequest, inbox: Inbox, served: Served, spelling: Spelling
) -> AsyncIterator[sampling_pb2.GenerateEvent]:
    """Yield Started, chunks, and for each completion a Finished, preceded by its routes if requested.

    Started waits for the prompt's log-probabilities if they were requested. Raises the error of a failed completion.
    """
    started = sampling_pb2.Started(
        request_id=asked.request_id,
        engine=served.engine,
        base_model=served.base_model,
        adapter=asked.adapter,
        prompt_tokens=len(asked.prompt),
        calls=sampling_pb2.Chat.Calls.ValueType(asked.calls),
        thought=sampling_pb2.Started.Thought.ValueType(asked.thought),
        goes_on=asked.begun is not None,
        base_source=served.base_source,
    )
    for part in _parts(len(asked.prompt) if asked.echo else 0):
        started.prompt.extend(spelling[token] for token in asked.prompt[part])
        await asyncio.sleep(0)
    left = len(asked.going_on)
    while left:
        entry = await inbox.get()
        if isinstance(entry, Queued):
            started.revision = entry.revision
            if not asked.sampling.prompt_logprobs:
                yield sampling_pb2.GenerateEvent(started=started)
            continue
        event = entry.event
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, PromptScored):
            for part in _parts(len(event.scores)):
                offsets = asked.offsets[part.start + 1 : part.stop + 1]
                started.prompt_logprobs.extend(_scores(event.scores[part], offsets, spelling))
                await asyncio.sleep(0)
            yield sampling_pb2.GenerateEvent(started=started)
            continue
        if isinstance(event, Done):
            left -= 1
            for routes in routed.encode(event.routes) if event.routes is not None else ():
                yield sampling_pb2.GenerateEvent(routed=sampling_pb2.Routed(routes=routes, index=entry.index))
        yield _event(asked, entry.index, event, spelling)


def _parts(count: int) -> Iterator[slice]:
    return (slice(first, first + _AT_ONCE) for first in range(0, count, _AT_ONCE))


def _event(asked: CheckedRequest, index: int, event: Tokens | Done, spelling: Spelling) -> sampling_pb2.GenerateEvent:
    if isinstance(event, Tokens):
        scores = _scores(event.scores, [event.offset] * len(event.scores), spelling)
        chunk = sampling_pb2.Chunk(
            text=event.text, token_ids=event.token_ids, logprobs=scores, index=index, markers=event.markers
        )
        return sampling_pb2.GenerateEvent(chunk=chunk)
    finished = sampling_pb2.Finished(
        reason=sampling_pb2.Finished.STOP if event.stopped else sampling_pb2.Finished.LENGTH,
        prompt_tokens=len(asked.prompt),
        completion_tokens=event.completion_tokens,
        index=index,
        cached_tokens=event.cached_tokens,
    )
    return sampling_pb2.GenerateEvent(finished=finished)


def _scores(scores: Sequence[Scored], offsets: Sequence[int], spelling: Spelling) -> list[sampling_pb2.TokenLogprob]:
    def logprob_of(token: int, logprob: float) -> sampling_pb2.TokenLogprob:
        return sampling_pb2.TokenLogprob(token_id=token, logprob=logprob, token=spelling[token])

    every = []
    for score, offset in zip(scores, offsets, strict=True):
        each = logprob_of(score.token_id, score.logprob)
        each.text_offset = offset
        each.top.extend(logprob_of(token, value) for token, value in score.top)
        every.append(each)
    return every

"""A request's events as a client gets them."""

from collections.abc import AsyncIterator, Sequence

from mint_contracts import sampling_pb2
from mint_engine.life import Asked, Begun, Inbox
from mint_engine.request import Failed, PromptScored, Scored, Tokens


async def answer(
    asked: Asked, inbox: Inbox, engine: str, base_model: str
) -> AsyncIterator[sampling_pb2.GenerateEvent]:
    """Started, chunks, Finished; raises what ended the request otherwise.

    Started waits for the prompt's log-probabilities where they were asked for.
    """
    started = sampling_pb2.Started(
        request_id=asked.request_id,
        engine=engine,
        base_model=base_model,
        adapter=asked.adapter,
        prompt_tokens=len(asked.prompt),
    )
    while True:
        event = await inbox.get()
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Begun):
            started.revision = event.revision
            if not asked.sampling.prompt_logprobs:
                yield sampling_pb2.GenerateEvent(started=started)
        elif isinstance(event, PromptScored):
            started.prompt_logprobs.extend(_scores(event.scores))
            yield sampling_pb2.GenerateEvent(started=started)
        elif isinstance(event, Tokens):
            chunk = sampling_pb2.Chunk(text=event.text, token_ids=event.token_ids, logprobs=_scores(event.scores))
            yield sampling_pb2.GenerateEvent(chunk=chunk)
        else:
            finished = sampling_pb2.Finished(
                reason=sampling_pb2.Finished.STOP if event.stopped else sampling_pb2.Finished.LENGTH,
                prompt_tokens=len(asked.prompt),
                completion_tokens=event.completion_tokens,
            )
            yield sampling_pb2.GenerateEvent(finished=finished)
            return


def _scores(scores: Sequence[Scored]) -> list[sampling_pb2.TokenLogprob]:
    return [
        sampling_pb2.TokenLogprob(
            token_id=score.token_id,
            logprob=score.logprob,
            top=[sampling_pb2.TokenLogprob(token_id=token, logprob=value) for token, value in score.top],
        )
        for score in scores
    ]

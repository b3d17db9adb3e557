"""One answer, assembled from the events of a stream."""

from collections.abc import Sequence

import msgspec

from mint_contracts import sampling_pb2


class Answer(msgspec.Struct, frozen=True):
    """One complete completion, and the engine and revision that produced it."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # of the tokens, if requested
    reason: str  # STOP or LENGTH
    base_model: str
    adapter: str
    engine: str
    revision: str
    prompt_tokens: int
    completion_tokens: int
    index: int = 0  # among the n completions of a request
    cached_tokens: int = 0  # prompt tokens that came from the engine's cache
    routes: tuple[sampling_pb2.Routes, ...] = ()  # which experts the tokens were routed to, if requested


def collect(events: Sequence[sampling_pb2.GenerateEvent]) -> list[Answer]:
    """Assemble the completions of a complete stream of events, by index."""
    started = next((event.started for event in events if event.HasField("started")), sampling_pb2.Started())
    chunks: dict[int, list[sampling_pb2.Chunk]] = {}
    routes: dict[int, list[sampling_pb2.Routes]] = {}
    finished: list[sampling_pb2.Finished] = []
    for event in events:
        if event.HasField("chunk"):
            chunks.setdefault(event.chunk.index, []).append(event.chunk)
        elif event.HasField("routed"):
            routes.setdefault(event.routed.index, []).append(event.routed.routes)
        elif event.HasField("finished"):
            finished.append(event.finished)
    finished.sort(key=lambda end: end.index)
    return [_answer(started, chunks.get(end.index, []), routes.get(end.index, []), end) for end in finished]


def _answer(
    started: sampling_pb2.Started,
    chunks: Sequence[sampling_pb2.Chunk],
    routes: Sequence[sampling_pb2.Routes],
    finished: sampling_pb2.Finished,
) -> Answer:
    return Answer(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tuple(token for chunk in chunks for token in chunk.token_ids),
        logprobs=tuple(entry.logprob for chunk in chunks for entry in chunk.logprobs),
        reason=sampling_pb2.Finished.Reason.Name(finished.reason),
        base_model=started.base_model,
        adapter=started.adapter,
        engine=started.engine,
        revision=started.revision,
        prompt_tokens=finished.prompt_tokens,
        completion_tokens=finished.completion_tokens,
        index=finished.index,
        cached_tokens=finished.cached_tokens,
        routes=tuple(routes),
    )

"""Client of a user's own `Reward` service: calls are batched, limited in time, and retried while that may help."""

import asyncio
import base64
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from types import TracebackType

import grpc

from mint_contracts import training_pb2, training_pb2_grpc
from mint_contracts.awaiting import gather_or_cancel
from mint_contracts.backoff import delay_s
from mint_contracts.errors import BadReward, InvalidRequest, RewardUnavailable
from mint_contracts.escaping import escape_controls
from mint_contracts.training import RewardService
from mint_contracts.training_pb2 import ScoredCompletion, ScoreResponse
from mint_contracts.transport import KEEPALIVE_TIMEOUT_MS
from mint_engine.rewards.completion import Completion

CALLS_AT_ONCE = 4
MOST_BYTES = 3 << 20  # of a call's completions, unless a single one has more: gRPC servers take 4 MiB by default
FIRST_RETRY_S, LONGEST_RETRY_S = 0.2, 10.0

_CHARACTER_BYTES = 4  # at most, in UTF-8

# A server with gRPC's defaults, as most users' are, takes pings more often than every five minutes for an attack, and
# closes the connection with every call on it (too_many_pings): within a minute of a slow call, if pinged every 10 s.
PING_MS = 330_000

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),  # also TCP's, for what a vanished node never acknowledges
    # Replicas share the calls: behind a headless Service those of one policy, behind any other those of all.
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.use_local_subchannel_pool", 1),
    # By gRPC's own pauses, up to two minutes, the retries in between would fail untried.
    ("grpc.max_reconnect_backoff_ms", int(LONGEST_RETRY_S * 1000)),
)

_AWAY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
}
# Caused by a service's own defect, or by a proxy that lost it: retried up to `retries` times, then final.
_BROKEN = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED}

Call = Callable[[], Awaitable[ScoreResponse]]
Retry = Callable[[Call, str], Awaitable[ScoreResponse]]  # repeats a call, named by the text, while it is unavailable


async def once(call: Call, _: str) -> ScoreResponse:
    """A `Retry` that does not: raise the call's own error."""
    return await call()


class ServiceClient:
    """One connection to one service. An async context manager."""

    def __init__(self, service: RewardService) -> None:
        """Raises InvalidRequest for a bundle without certificates."""
        if service.tls:
            credentials = grpc.ssl_channel_credentials(_authorities(service.ca_bundle))
            self._channel = grpc.aio.secure_channel(service.address, credentials, options=_OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(service.address, options=_OPTIONS)
        self._service = service
        self._stub: training_pb2_grpc.RewardAsyncStub = training_pb2_grpc.RewardStub(self._channel)
        self._room = asyncio.Semaphore(CALLS_AT_ONCE)

    async def score(
        self, policy: str, step: int, completions: Sequence[Completion], retry: Retry = once
    ) -> list[float]:
        """Return a reward for each completion. Raises BadReward for an invalid answer, and as `retry` does.

        Each call is retried by itself: a busy service seldom has room for all of them at once.
        """

        async def call(place: int, batch: Sequence[Completion]) -> list[float]:
            async with self._room:  # messages, each with a copy of its example, are made only for calls under way
                scored = map(_scored_completion, batch)
                request = training_pb2.ScoreRequest(policy=policy, step=step, completions=scored)
                rewards = list((await retry(lambda: self._answer(request), f"reward {place}")).rewards)
            if len(rewards) != len(batch):
                raise BadReward(self._subject, f"gave {len(rewards)} rewards for {len(batch)} completions")
            return rewards

        batches = _batches(completions, self._service.batch)
        answers = await gather_or_cancel(call(place, batch) for place, batch in enumerate(batches))
        return [reward for answer in answers for reward in answer]

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close()

    async def __aenter__(self) -> "ServiceClient":
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        await self.close()

    async def _answer(self, request: training_pb2.ScoreRequest) -> training_pb2.ScoreResponse:
        attempt = broken = 0
        while True:
            try:
                return await self._stub.Score(request, timeout=self._service.timeout_s)
            except grpc.aio.AioRpcError as error:
                attempt += 1
                code, why = error.code(), escape_controls((error.details() or "")[:200])
                broken += code in _BROKEN
                if code not in _AWAY and (code not in _BROKEN or broken > self._service.retries):
                    raise BadReward(self._subject, f"refused completions with {code.name}: {why}") from None
                if attempt > self._service.retries:
                    raise RewardUnavailable(
                        self._subject, f"did not answer {attempt} times, last with {code.name}: {why}"
                    ) from None
            await asyncio.sleep(delay_s(attempt, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S))

    @property
    def _subject(self) -> str:
        return f"reward service {self._service.address!r}"


def _scored_completion(completion: Completion) -> ScoredCompletion:
    return ScoredCompletion(
        prompt=completion.prompt,
        completion=completion.text,
        answer=completion.answer or "",
        example=completion.example,
    )


def _batches(completions: Sequence[Completion], most: int) -> Iterator[list[Completion]]:
    """Yield batches of at most `most` completions and MOST_BYTES; a single larger completion is its own batch."""
    batch, size = list[Completion](), 0
    for each in completions:
        own = _most_bytes(each)
        if batch and (len(batch) >= most or size + own > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += own
    if batch:
        yield batch


def _most_bytes(completion: Completion) -> int:
    """Return about how many bytes its message has at most, without encoding the texts."""
    texts = (completion.prompt, completion.text, completion.answer or "", completion.example)
    return sum(len(each) * (1 if each.isascii() else _CHARACTER_BYTES) for each in texts)


def _authorities(bundle: str) -> bytes | None:
    """Return a bundle's certificates as PEM; None for gRPC's default ones."""
    if not bundle:
        return None
    try:
        found = base64.b64decode(bundle, validate=True)
        ssl.create_default_context(cadata=found.decode("ascii"))
    except (ValueError, ssl.SSLError) as error:
        raise InvalidRequest(
            "reward.service.caBundle",
            f"has no certificates ({error}); give PEM in base64, as `base64 -w0 ca.crt` prints it",
        ) from None
    return found

"""Rewards by a user's own service, asked over a real socket."""

import asyncio
import base64
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest

from mint_contracts import training_pb2, training_pb2_grpc
from mint_contracts.errors import BadReward, InvalidRequest, MintError, RewardUnavailable
from mint_contracts.training import Reward, RewardService
from mint_engine.policies import patience
from mint_engine.rewards import service
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.scorer import Scorer
from tests.apiserver import ROOT
from tests.docs.pages import blocks
from tests.engine.stores import self_signed
from tests.engine.training.training_engine import train, training
from tests.redis_process import free_port
from tests.waiting import PATIENCE_S, until


class Judge(training_pb2_grpc.RewardServicer):
    """A user's service that scores completions by length, after `trouble` has had its effect on the call."""

    def __init__(self, trouble: Callable[[int], Any]) -> None:
        self.trouble, self.requests, self.peers = trouble, list[training_pb2.ScoreRequest](), set[str]()

    async def Score(  # noqa: N802 - the name is the proto's
        self, request: training_pb2.ScoreRequest, context: Any
    ) -> training_pb2.ScoreResponse:
        self.requests.append(request)
        self.peers.add(context.peer())
        told = self.trouble(len(self.requests))
        if isinstance(told, grpc.StatusCode):
            await context.abort(told, "\x1b[2Jnot now")
        if told is not None:
            return training_pb2.ScoreResponse(rewards=told)
        return training_pb2.ScoreResponse(rewards=[len(each.completion) for each in request.completions])


class Busy(Judge):
    """A service with room for one call, which ends after `least` others were refused, or as the last of `calls`."""

    def __init__(self, calls: int, least: int) -> None:
        super().__init__(lambda _: None)
        self.calls, self.least, self.refused, self.scores = calls, least, 0, False

    async def Score(  # noqa: N802 - the name is the proto's
        self, request: training_pb2.ScoreRequest, context: Any
    ) -> training_pb2.ScoreResponse:
        if self.scores:
            self.refused += 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy")
        self.scores, until_then = True, self.refused + self.least
        try:
            await until(lambda: self.refused >= until_then or len(self.requests) == self.calls - 1)
            return await super().Score(request, context)
        finally:
            self.scores = False


@asynccontextmanager
async def serving(
    trouble: Callable[[int], Any] = lambda _: None,
    credentials: grpc.ServerCredentials | None = None,
    judge: Judge | None = None,
) -> AsyncIterator[tuple[Judge, str]]:
    judge, server = judge or Judge(trouble), grpc.aio.server()
    training_pb2_grpc.add_RewardServicer_to_server(judge, server)
    place = "127.0.0.1:0"
    port = server.add_secure_port(place, credentials) if credentials else server.add_insecure_port(place)
    await server.start()
    try:
        yield judge, f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def scored(told: RewardService) -> list[float]:
    scorer = Scorer(Reward(service=told))
    try:
        return await scorer.score("acme/one", 7, [Completion("say", "x" * n, f"a{n}", "{}") for n in range(5)])
    finally:
        await scorer.close()


async def test_a_service_is_asked_in_batches_and_told_everything() -> None:
    async with serving() as (judge, address):
        assert await scored(RewardService(address=address, batch=2)) == [0, 1, 2, 3, 4]
        assert sorted(len(each.completions) for each in judge.requests) == [1, 2, 2]
        request = next(each for each in judge.requests if each.completions[0].completion == "")
        assert (request.policy, request.step) == ("acme/one", 7)
        assert request.completions[1].prompt == "say"
        assert request.completions[1].answer == "a1"


async def test_messages_are_made_only_for_calls_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a copy of its example, which may have a megabyte, as a step may have thousands of completions."""
    made, ahead = list[Completion](), list[int]()
    write = service._scored_completion

    def count(completion: Completion) -> training_pb2.ScoredCompletion:
        made.append(completion)
        return write(completion)

    monkeypatch.setattr(service, "_scored_completion", count)
    async with serving(lambda call: ahead.append(len(made) - call)) as (_, address):
        scorer = Scorer(Reward(service=RewardService(address=address, batch=1)))
        assert await scorer.score("acme/one", 7, [Completion("say", "x" * n) for n in range(40)]) == list(range(40))
        await scorer.close()
    assert max(ahead) < service.CALLS_AT_ONCE


async def test_the_service_that_the_pages_show_scores() -> None:
    [code] = [each for each in blocks(ROOT / "docs" / "training.md") if "RewardServicer" in each]
    address, names = f"127.0.0.1:{free_port()}", dict[str, Any]()
    exec(compile(code.replace("asyncio.run(main())", "").replace("[::]:8480", address), "training.md", "exec"), names)
    serves = asyncio.create_task(names["main"]())
    scorer = Scorer(Reward(service=RewardService(address=address)))
    rewards = await scorer.score("acme/one", 7, [Completion("say", text, "72") for text in ("so 72", "so 27")])
    assert rewards == [1.0, 0.0]
    await scorer.close()
    serves.cancel()
    await asyncio.wait([serves])


async def test_a_service_of_grpcs_own_bound_takes_what_long_examples_make_of_a_batch() -> None:
    long = [Completion("say", "x" * n, "", "e" * (1 << 20)) for n in range(6)]
    async with serving() as (judge, address):
        scorer = Scorer(Reward(service=RewardService(address=address, retries=0)))
        assert await scorer.score("acme/one", 7, long) == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        await scorer.close()
    assert sorted(len(each.completions) for each in judge.requests) == [2, 2, 2]


async def test_a_service_that_is_away_is_asked_again_and_given_up_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FIRST_RETRY_S", 0.001)

    def flaky(call: int) -> Any:
        return grpc.StatusCode.UNAVAILABLE if call < 3 else None

    async with serving(flaky) as (judge, address):
        assert await scored(RewardService(address=address, retries=2)) == [0, 1, 2, 3, 4]
        assert len(judge.requests) == 3
    async with serving(lambda _: grpc.StatusCode.RESOURCE_EXHAUSTED) as (judge, address):
        with pytest.raises(RewardUnavailable, match="did not answer 2 times, last with RESOURCE_EXHAUSTED"):
            await scored(RewardService(address=address, retries=1))
        assert len(judge.requests) == 2


async def test_a_service_with_room_for_one_call_scores_all_of_a_steps(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls that are refused until they are given up end none under way, and repeat none that was answered."""
    for module in (service, patience):
        monkeypatch.setattr(module, "FIRST_RETRY_S", 0.001)
        monkeypatch.setattr(module, "LONGEST_RETRY_S", 0.01)
    async with serving(judge=Busy(calls=4, least=8)) as (judge, address):
        told = RewardService(address=address, batch=2, retries=1)
        async with training(base, tmp_path, train(reward=Reward(service=told), steps=1)) as scene:
            await scene.complete("acme/one")
        assert sorted(len(each.completions) for each in judge.requests) == [2, 2, 2, 2]


async def test_a_service_that_breaks_is_asked_again_too_and_refused_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "FIRST_RETRY_S", 0.001)

    def broken_once(call: int) -> Any:
        return grpc.StatusCode.UNKNOWN if call == 1 else None

    async with serving(broken_once) as (_, address):
        assert await scored(RewardService(address=address, retries=1)) == [0, 1, 2, 3, 4]
    async with serving(lambda _: grpc.StatusCode.INTERNAL) as (judge, address):
        with pytest.raises(BadReward, match="refused completions with INTERNAL"):
            await scored(RewardService(address=address, retries=1))
        assert len(judge.requests) == 2


async def test_a_service_that_breaks_once_while_it_restarts_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "FIRST_RETRY_S", 0.001)

    def restarting(call: int) -> Any:
        return grpc.StatusCode.UNAVAILABLE if call == 1 else grpc.StatusCode.CANCELLED

    async with serving(restarting) as (judge, address):
        with pytest.raises(RewardUnavailable, match="did not answer 2 times, last with CANCELLED"):
            await scored(RewardService(address=address, retries=1))
        assert len(judge.requests) == 2


async def test_replicas_of_a_service_share_the_calls_of_one_policy() -> None:
    async with serving() as (one, first), serving() as (other, second):
        both = RewardService(address=f"ipv4:{first},{second}", batch=1)
        scorer = Scorer(Reward(service=both))
        async with asyncio.timeout(PATIENCE_S):
            while not (one.requests and other.requests):  # the second connection may take longer
                await scorer.score("acme/one", 7, [Completion("say", "x")] * 4)
        await scorer.close()


async def test_replicas_behind_one_address_share_the_policies() -> None:
    """Such a Service chooses a replica for each connection."""
    async with serving() as (judge, address):
        scorers = [Scorer(Reward(service=RewardService(address=address))) for _ in range(2)]
        for each in scorers:
            await each.score("acme/one", 7, [Completion("say", "x")])
        assert len(judge.peers) == 2
        for each in scorers:
            await each.close()


def test_a_slow_service_is_not_pinged_more_often_than_grpcs_servers_allow_by_default() -> None:
    """They allow one ping in five minutes, or else end the connection with the calls that they still work on."""
    assert service.PING_MS > 300_000
    assert dict(service._OPTIONS)["grpc.keepalive_time_ms"] == service.PING_MS


async def test_a_service_is_asked_over_tls_where_an_authority_of_the_users_vouches_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FIRST_RETRY_S", 0.001)
    _, certificate = self_signed(tmp_path)
    credentials = grpc.ssl_server_credentials([((tmp_path / "key.pem").read_bytes(), certificate.read_bytes())])
    bundle = base64.b64encode(certificate.read_bytes()).decode()
    async with serving(credentials=credentials) as (judge, address):
        told = RewardService(address=address, tls=True, ca_bundle=bundle)
        assert await scored(told) == [0, 1, 2, 3, 4]
        with pytest.raises(RewardUnavailable, match="UNAVAILABLE"):
            await scored(msgspec.structs.replace(told, ca_bundle="", retries=1))
        assert len(judge.requests) == 1, "the public authorities do not know it"


@pytest.mark.parametrize("bundle", ["no base64", base64.b64encode(b"no certificate").decode()])
def test_a_bundle_without_certificates_is_refused_by_name(bundle: str) -> None:
    with pytest.raises(InvalidRequest, match=r"reward\.service\.caBundle: has no certificates"):
        Scorer(Reward(service=RewardService(address="judge:1", tls=True, ca_bundle=bundle)))


async def test_a_service_that_hangs_is_away() -> None:
    hanging = await asyncio.start_server(lambda _r, _w: asyncio.sleep(60), "127.0.0.1", 0)
    port = hanging.sockets[0].getsockname()[1]
    with pytest.raises(RewardUnavailable, match="did not answer 1 times"):
        await scored(RewardService(address=f"127.0.0.1:{port}", timeout_s=0.2, retries=0))
    hanging.close()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([math.nan] * 5, "got nan from service for '' at step 7"),
        ([1, math.inf, 1, 1, 1], "got inf"),
        ([1, 1e200, 1, 1, 1], r"got 1e\+200 for 'x' at step 7; a reward.* must be within 1e\+30 of 0"),
        ([1.0], "gave 1 rewards for 5"),
        (grpc.StatusCode.INVALID_ARGUMENT, r"refused completions with INVALID_ARGUMENT: \\x1b\[2Jnot now"),
    ],
)
async def test_an_invalid_reward_is_refused_by_name(answer: Any, why: str) -> None:
    async with serving(lambda _: answer) as (judge, address):
        with pytest.raises(BadReward, match=why) as refused:
            await scored(RewardService(address=address))
        assert isinstance(refused.value, MintError)
        assert len(judge.requests) == 1

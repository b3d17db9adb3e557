"""A course that waits for others obeys an order to stop at once; a step given up for it is later learnt just once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
from structlog.testing import capture_logs

from mint_contracts import training_pb2, training_pb2_grpc
from mint_contracts.errors import Overloaded, RewardUnavailable
from mint_contracts.training import Evaluation, Reward, RewardService, Train
from mint_contracts.training_records import Order, Stage
from mint_engine.policies import patience
from mint_engine.policies.courses import lessons
from mint_engine.policies.halt import Halt, Halted
from mint_engine.rewards.scorer import Scorer
from tests.engine.training.training_engine import Scene, assignment, began, saved, train, training
from tests.waiting import PATIENCE_S, until

HANGS_AT = 2
ORDERS = [(Order.PAUSE, Stage.PAUSED), (Order.CANCEL, Stage.CANCELLED)]


class Judge(training_pb2_grpc.RewardServicer):
    """A reward service that pays for late letters of the alphabet, and hangs from one step on until it is mended."""

    def __init__(self, *, evaluations: bool, hangs_at: int) -> None:
        self._evaluations = evaluations  # whether evaluations hang instead of steps
        self._hangs_at = hangs_at
        self.evaluated: list[int] = []  # the finished steps at each evaluation
        self.asked = asyncio.Event()  # a call arrived that it does not answer
        self.given_up = asyncio.Event()
        self.mended = asyncio.Event()

    async def Score(  # noqa: N802 - the name is the proto's
        self, request: training_pb2.ScoreRequest, _: Any
    ) -> training_pb2.ScoreResponse:
        evaluates = len(request.completions) == 1
        self.evaluated += [request.step] * evaluates
        if request.step >= self._hangs_at and evaluates is self._evaluations and not self.mended.is_set():
            self.asked.set()
            try:
                await asyncio.wait_for(self.mended.wait(), PATIENCE_S)
            except asyncio.CancelledError:
                self.given_up.set()
                raise
        return training_pb2.ScoreResponse(rewards=[sum(map(ord, each.completion)) for each in request.completions])


@asynccontextmanager
async def judged(*, evaluations: bool = False, hangs_at: int = HANGS_AT) -> AsyncIterator[tuple[Judge, Train]]:
    """Run a reward service and yield it with a wave that uses it, with the longest timeout and the most retries."""
    judge, server = Judge(evaluations=evaluations, hangs_at=hangs_at), grpc.aio.server()
    training_pb2_grpc.add_RewardServicer_to_server(judge, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    service = RewardService(address=f"127.0.0.1:{port}", timeout_s=600.0, retries=10)
    told = train(reward=Reward(service=service), steps=4, evaluation=Evaluation(every_steps=2, prompts=1))
    try:
        yield judge, told
    finally:
        await server.stop(None)


async def undisturbed(base: Path, folder: Path) -> tuple[tuple[float, ...], bytes]:
    async with judged() as (judge, told), training(base, folder, told) as scene:
        judge.mended.set()
        await scene.complete("acme/one")
        return saved(scene, "acme/one")


async def stopped(scene: Scene, order: Order, stage: Stage) -> int:
    """Give the order and return the step at which the course stops."""
    scene.want(assignment("acme/one", order=order))
    told = (await scene.ended("acme/one", stage=stage))["acme/one"]
    await until(lambda: len(scene.residency.slots.free) == scene.residency.slots.count)
    assert (told.failure, told.saved) == (None, told.step)
    return told.step


@pytest.mark.parametrize(("order", "stage"), ORDERS)
@pytest.mark.parametrize("evaluations", [False, True])
async def test_a_course_that_waits_for_a_hanging_reward_service_stops_at_its_last_step(
    base: Path, tmp_path: Path, order: Order, stage: Stage, *, evaluations: bool
) -> None:
    """It also stops asking the service; otherwise it would wait for two hours."""
    async with judged(evaluations=evaluations) as (judge, told), training(base, tmp_path, told) as scene:
        scene.want(assignment("acme/one"))
        await asyncio.wait_for(judge.asked.wait(), PATIENCE_S)
        assert await stopped(scene, order, stage) == HANGS_AT == len(saved(scene, "acme/one")[0])
        await asyncio.wait_for(judge.given_up.wait(), PATIENCE_S)


@pytest.mark.parametrize("evaluations", [False, True])
async def test_a_step_that_was_given_up_for_an_order_is_taken_as_if_nothing_had_been(
    base: Path, tmp_path: Path, *, evaluations: bool
) -> None:
    whole = await undisturbed(base, tmp_path / "whole")
    async with judged(evaluations=evaluations) as (judge, told), training(base, tmp_path, told) as scene:
        scene.want(assignment("acme/one"))
        await asyncio.wait_for(judge.asked.wait(), PATIENCE_S)
        await stopped(scene, Order.PAUSE, Stage.PAUSED)
        judge.mended.set()
        with capture_logs() as logs:
            await scene.complete("acme/one")
        assert began(logs) == [HANGS_AT]
        assert saved(scene, "acme/one") == whole


async def test_a_policy_that_is_paused_in_its_first_step_keeps_its_baseline(base: Path, tmp_path: Path) -> None:
    async with judged(hangs_at=0) as (judge, told), training(base, tmp_path, told) as scene:
        scene.want(assignment("acme/one"))
        await asyncio.wait_for(judge.asked.wait(), PATIENCE_S)
        baseline = scene.roster.progress()["acme/one"].evaluation
        assert await stopped(scene, Order.PAUSE, Stage.PAUSED) == 0
        judge.mended.set()
        ended = (await scene.complete("acme/one")).evaluation
        assert judge.evaluated == [0, 2, 4]
        curve = scene.roster.curves()["acme/one"]
    assert baseline is not None
    assert [each.step for each in curve] == [0, 1, 2, 3, 4]
    assert [curve[0].evaluation, curve[-1].evaluation] == [baseline, ended]


async def test_a_policy_that_is_paused_after_its_last_step_is_evaluated_once_it_is_resumed(
    base: Path, tmp_path: Path
) -> None:
    async with judged(evaluations=True, hangs_at=4) as (judge, told), training(base, tmp_path, told) as scene:
        scene.want(assignment("acme/one"))
        await asyncio.wait_for(judge.asked.wait(), PATIENCE_S)
        assert await stopped(scene, Order.PAUSE, Stage.PAUSED) == told.steps
        judge.mended.set()
        await scene.complete("acme/one")
        last = scene.roster.curves()["acme/one"][-1]
        assert (last.step, last.evaluation) == (told.steps, scene.roster.progress()["acme/one"].evaluation)
    assert judge.evaluated == [0, 2, 4, 4]


async def test_a_pause_that_is_taken_back_at_once_takes_the_same_steps(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds although the reward call was already given up for the pause."""
    whole = await undisturbed(base, tmp_path / "whole")
    monkeypatch.setattr(lessons, "GRACE_S", 0.0)
    async with judged() as (judge, told), training(base, tmp_path, told) as scene:
        scene.want(assignment("acme/one"))
        await asyncio.wait_for(judge.asked.wait(), PATIENCE_S)
        scene.want(assignment("acme/one", order=Order.PAUSE))
        await asyncio.wait_for(judge.given_up.wait(), PATIENCE_S)
        judge.mended.set()
        await scene.complete("acme/one")
        assert saved(scene, "acme/one") == whole


async def test_a_service_that_answers_in_a_moment_has_its_step_count(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lessons, "GRACE_S", 3600.0)
    async with judged() as (judge, told), training(base, tmp_path, told) as scene:
        scene.want(assignment("acme/one"))
        await asyncio.wait_for(judge.asked.wait(), PATIENCE_S)
        scene.want(assignment("acme/one", order=Order.PAUSE))
        judge.mended.set()
        assert await stopped(scene, Order.PAUSE, Stage.PAUSED) == HANGS_AT + 1


@pytest.mark.parametrize(("order", "stage"), ORDERS)
async def test_a_course_without_room_for_rollouts_stops_at_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Order, stage: Stage
) -> None:
    """This holds however long the refusal tells it to wait before asking again."""
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 3600.0)

    def refuse(*_: object) -> Any:
        raise Overloaded("engine", "has no room", retry_after_s=3600.0)

    async with training(base, tmp_path, train(steps=3)) as scene:
        monkeypatch.setattr(scene.stepper, "submit_all", refuse)
        with capture_logs() as logs:
            scene.want(assignment("acme/one"))
            await until(lambda: any(each["event"] == "tried_again" for each in logs))
        assert await stopped(scene, order, stage) == 0


@pytest.mark.parametrize(("order", "stage"), ORDERS)
async def test_a_course_that_was_told_to_stop_stops_though_what_it_waited_for_then_fails_once_more(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Order, stage: Stage
) -> None:
    """By then it may have retried longer than work that nobody waits for would be."""
    monkeypatch.setattr(patience, "ATTEMPTS", 1)
    monkeypatch.setattr(lessons, "GRACE_S", 3600.0)
    asked, fails = asyncio.Event(), asyncio.Event()

    async def score(*_: object) -> Any:
        asked.set()
        await fails.wait()
        raise RewardUnavailable("reward service", "did not answer")

    monkeypatch.setattr(Scorer, "score", score)
    async with training(base, tmp_path, train(steps=3)) as scene:
        scene.want(assignment("acme/one"))
        await asyncio.wait_for(asked.wait(), PATIENCE_S)
        scene.want(assignment("acme/one", order=order))
        fails.set()
        assert await stopped(scene, order, stage) == 0


async def test_a_paused_course_waits_for_room_to_save_what_it_has_learnt(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "ATTEMPTS", patience.TOLD_FROM)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.1)
    async with (
        judged() as (judge, told),
        training(base, tmp_path, msgspec.structs.replace(told, checkpoint_every_steps=100)) as scene,
    ):
        scene.want(assignment("acme/one"))
        await asyncio.wait_for(judge.asked.wait(), PATIENCE_S)
        room = scene.residency.lending.room
        room._wait_s = 0.01
        release = await room.begin_copy("other", room.budget - room.policies)
        scene.want(assignment("acme/one", order=Order.PAUSE))
        await until(lambda: scene.roster.progress()["acme/one"].failure)
        release()
        assert await stopped(scene, Order.PAUSE, Stage.PAUSED) == HANGS_AT


async def test_who_waits_is_given_no_longer_when_told_once_more_and_as_long_as_it_likes_when_told_to_go_on() -> None:
    told = False
    halt = Halt(lambda: told)
    async with halt.within(3600.0):
        [wait] = halt._waits
        assert wait.when() is None
        told = True
        halt.update()
        ends_at = wait.when()
        await asyncio.sleep(0.001)
        halt.update()
        assert wait.when() == ends_at is not None
        told = False
        halt.update()
        assert wait.when() is None


async def test_a_course_told_to_stop_waits_for_nothing() -> None:
    with pytest.raises(Halted):
        async with Halt(lambda: True).within(0.0):
            await asyncio.Event().wait()


async def test_a_time_out_of_what_is_waited_for_is_its_own() -> None:
    with pytest.raises(TimeoutError):
        async with Halt(lambda: False).within(0.0):
            raise TimeoutError

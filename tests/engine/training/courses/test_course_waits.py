"""A course that waits for rewards, examples, a slot or its engine's capacity holds nothing that others need."""

import asyncio
import itertools
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from mint_contracts.errors import Overloaded, RewardUnavailable, SourceUnavailable
from mint_contracts.training import Dataset, Regex, Reward, RewardService
from mint_contracts.training_records import Order, Stage
from mint_engine.examples import shared
from mint_engine.examples.dataset import read_dataset
from mint_engine.policies import patience
from mint_engine.policies.courses import course
from mint_engine.policies.patience import Patience
from mint_engine.requests.parameters import Sampling
from mint_engine.rewards.scorer import Scorer
from mint_engine.rewards.service import ServiceClient
from mint_engine.scheduling.request import Request
from tests.engine.training.training_engine import LINES, PROMPT, Gate, Scene, assignment, train, training
from tests.waiting import until


def fill(scene: Scene) -> None:
    """Submit requests, each for a different adapter, until the engine refuses more."""
    with suppress(Overloaded):
        for n in itertools.count():
            request = Request(PROMPT, Sampling(max_tokens=1, seed=0), adapter=f"tenant/{n}")
            scene.stepper.submit(request, lambda _: None)


async def test_policies_of_a_wave_share_their_examples_and_let_go_of_them(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=1000)) as scene:
        scene.want(assignment("acme/one"), assignment("acme/two"))
        courses = [scene.roster._running[policy].course for policy in ("acme/one", "acme/two")]
        await until(lambda: all(course._lessons for course in courses))
        first, second = (course._running().examples for course in courses)
        assert first is second
        held = weakref.ref(first)
        del first, second
        scene.want(assignment("acme/one", order=Order.CANCEL), assignment("acme/two", order=Order.CANCEL))
        await scene.ended("acme/one", "acme/two", stage=Stage.CANCELLED)
        await until(lambda: held() is None)


async def test_rewards_that_are_away_are_waited_for_and_a_pause_is_heard_meanwhile(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)
    away = Reward(service=RewardService(address="127.0.0.1:1", retries=0, timeout_s=1.0))
    async with training(base, tmp_path, train(reward=away)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].failure)
        failure = scene.roster.progress()["acme/one"].failure
        assert failure is not None
        assert (failure.reason, failure.terminal) == ("RewardUnavailable", False)
        scene.want(assignment("acme/one", order=Order.PAUSE))
        told = (await scene.ended("acme/one", stage=Stage.PAUSED))["acme/one"]
        assert (told.step, told.failure) == (0, None)


@pytest.mark.parametrize(("told_after_s", "told"), [(0.0, [True, False]), (600.0, [])], ids=["long", "short"])
async def test_trouble_that_lasts_is_reported_however_few_attempts_it_took(
    told_after_s: float, told: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four calls of a service that hangs may take hours."""
    monkeypatch.setattr(patience, "TOLD_AFTER_S", told_after_s)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.01)
    reported, errors = list[bool](), [RewardUnavailable("reward service 'judge:1'", "did not answer 4 times")]

    async def score() -> float:
        if errors:
            raise errors.pop()
        return 1.0

    waiting = Patience("acme/one", lambda: reported.append(bool(waiting.trouble)))
    assert await waiting(score, "reward", lambda: True) == 1.0
    assert reported == told


@pytest.fixture
def scorers(monkeypatch: pytest.MonkeyPatch) -> list[Scorer]:
    """All scorers created during the test; retries are made short."""
    made: list[Scorer] = []

    class Noted(Scorer):
        def __init__(self, reward: Reward, wave: str = "") -> None:
            super().__init__(reward, wave)
            made.append(self)

    monkeypatch.setattr(course, "Scorer", Noted)
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)
    return made


def connected(scorers: Sequence[Scorer]) -> list[bool]:
    """Return, for each scorer's reward service, whether its channel is still open."""
    services = [part.source for scorer in scorers for part in scorer._parts if isinstance(part.source, ServiceClient)]
    return [each._channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN for each in services]


@pytest.mark.parametrize("how", ["pause", "cancel", "lease gone", "engine ends"])
@pytest.mark.parametrize("loads", [False, True])
async def test_however_a_course_ends_it_leaves_no_connection_to_its_reward_service(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorers: list[Scorer], how: str, *, loads: bool
) -> None:
    """The course ends while its service is unavailable, or already while it waits for a slot, retrying."""
    away = Reward(service=RewardService(address="127.0.0.1:1", retries=0, timeout_s=1.0))
    async with training(base, tmp_path, train(reward=away)) as scene:
        lending, slots = scene.residency.lending, scene.residency.slots
        monkeypatch.setattr(slots, "_wait_s", 0.01)
        taken = [await lending.reserve(f"acme/other-{n}") for n in range(slots.count)] if loads else []
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].failure)
        assert connected(scorers) == [True], "one, however often it is tried"
        if how == "engine ends":
            await scene.roster.close()
        elif how == "lease gone":
            scene.want()
        else:
            scene.want(assignment("acme/one", order=Order.PAUSE if how == "pause" else Order.CANCEL))
        for slot in taken:
            await lending.release(slot)
        await until(lambda: connected(scorers) == [False] and len(scene.residency.slots.free) == slots.count)


async def test_a_course_waits_for_examples_without_a_slot_and_for_a_slot_without_examples(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)
    monkeypatch.setattr(course, "HELD_S", 0.0)
    async with training(base, tmp_path, train(steps=1)) as scene:
        lending, slots, datasets = scene.residency.lending, scene.residency.slots, scene.context.datasets
        monkeypatch.setattr(slots, "_wait_s", 0.01)
        free: list[int] = []
        is_away = True

        def read(told: Dataset) -> Any:
            free.append(len(slots.free))
            if is_away:
                raise SourceUnavailable(f"dataset {told.uri!r}", "did not answer")
            return read_dataset(told)

        monkeypatch.setattr(shared, "read_dataset", read)
        scene.want(assignment("acme/one"))
        await until(lambda: len(free) >= 3)
        assert set(free) == {slots.count}, "nobody loses a slot to whom nothing comes of it"
        taken = [await lending.reserve(f"acme/other-{n}") for n in range(slots.count)]
        is_away = False
        await until(
            lambda: (told := scene.roster.progress()["acme/one"].failure) and "has no slot: all" in told.message
        )
        tries = len(free)
        await until(lambda: not datasets._held)
        for slot in taken:
            await lending.release(slot)
        await scene.ended("acme/one")
        assert len(free) == tries + 1, "they were read again, once, when there was a slot"


@pytest.mark.parametrize(("order", "stage"), [(Order.CANCEL, Stage.CANCELLED), (Order.PAUSE, Stage.PAUSED)])
@pytest.mark.parametrize(
    "waits_for", ["its turn to read", "its turn for a slot", "a slot", "a data set that is away"]
)
async def test_an_order_to_stop_is_heard_at_once_by_who_waits_for_a_place_or_for_examples(
    base: Path, tmp_path: Path, waits_for: str, order: Order, stage: Stage
) -> None:
    (tmp_path / "train.jsonl").write_text(LINES[0])
    name = "train.jsonl" if waits_for != "a data set that is away" else "away.parquet"
    told = train(dataset=Dataset(uri=f"file://{tmp_path}/{name}"))
    async with training(base, tmp_path, told) as scene:
        lending, slots, datasets = scene.residency.lending, scene.residency.slots, scene.context.datasets
        taken = list[int]()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(slots, "_wait_s", 3600.0 if waits_for == "its turn for a slot" else 0.01)
            if waits_for in {"a slot", "its turn for a slot"}:
                taken = [await lending.reserve(f"acme/other-{n}") for n in range(slots.count)]
            elif waits_for == "its turn to read":
                for _ in range(shared.AT_ONCE):
                    await datasets._room.acquire()
            else:
                patched.setattr(shared, "read_dataset", refuse)
            with capture_logs() as logs:
                scene.want(assignment("acme/one", saved=2))
                await until(
                    lambda: (
                        datasets._room._waiters
                        or (waits_for == "its turn for a slot" and slots._line)
                        or any(each["event"] == "tried_again" for each in logs)
                    )
                )
            scene.want(assignment("acme/one", order=order, saved=2))
            ended = (await scene.ended("acme/one", stage=stage))["acme/one"]
        assert (ended.step, ended.saved, ended.failure) == (2, 2, None)
        for slot in taken:
            await lending.release(slot)
        await until(lambda: len(slots.free) == slots.count)


async def test_a_course_cancelled_twice_keeps_no_slot_granted_in_between(base: Path, tmp_path: Path) -> None:
    """This happens whenever the map changes while a policy to be cancelled still waits in line."""
    async with training(base, tmp_path, train()) as scene:
        lending, slots = scene.residency.lending, scene.residency.slots
        taken = [await lending.reserve(f"acme/other-{n}") for n in range(slots.count)]
        scene.want(assignment("acme/one"))
        await until(lambda: slots._line)
        for _ in range(3):
            scene.want(assignment("acme/one", order=Order.CANCEL))
            await asyncio.sleep(0)
        for slot in taken:
            await lending.release(slot)
        await scene.ended("acme/one", stage=Stage.CANCELLED)
        await until(lambda: not scene.residency._tasks)
        assert len(slots.free) == slots.count


async def test_a_course_paused_and_resumed_while_it_waits_goes_on(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=1)) as scene:
        lending, slots = scene.residency.lending, scene.residency.slots
        taken = [await lending.reserve(f"acme/other-{n}") for n in range(slots.count)]
        scene.want(assignment("acme/one"))
        await until(lambda: slots._line)
        scene.want(assignment("acme/one", order=Order.PAUSE))
        scene.want(assignment("acme/one"))
        for slot in taken:
            await lending.release(slot)
        await scene.ended("acme/one")


def refuse(told: Dataset) -> Any:
    raise SourceUnavailable(f"dataset {told.uri!r}", "did not answer")


async def test_a_full_engine_is_waited_for(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)
    async with training(base, tmp_path, train(steps=2, checkpoint_every_steps=100)) as scene:
        with Gate() as stepping:
            step_thread, learn, held = (
                scene.context.step_thread,
                scene.context.step_thread.learn,
                list[asyncio.Task[None]](),
            )

            async def learn_and_fill(*given: Any, **options: Any) -> Any:
                learnt = await learn(*given, **options)
                if not held:
                    held.append(asyncio.create_task(step_thread.call(lambda _: stepping.go_by())))
                    await stepping.reached()
                    fill(scene)
                return learnt

            step_thread.learn = learn_and_fill  # type: ignore[method-assign]
            scene.want(assignment("acme/one"))
            await until(lambda: scene.roster.progress()["acme/one"].failure)
            told = scene.roster.progress()["acme/one"]
            assert told.failure is not None
            assert (told.step, told.failure.reason, told.failure.terminal) == (1, "Overloaded", False)
            stepping.open()
            await scene.ended("acme/one")


async def test_a_slot_is_waited_for(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)
    async with training(base, tmp_path, train(steps=1)) as scene:
        lending, slots = scene.residency.lending, scene.residency.slots
        monkeypatch.setattr(slots, "_wait_s", 0.01)
        taken = [await lending.reserve(f"acme/other-{n}") for n in range(slots.count)]
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].failure)
        failure = scene.roster.progress()["acme/one"].failure
        assert failure is not None
        assert (failure.reason, failure.terminal) == ("Overloaded", False)
        for slot in taken:
            await lending.release(slot)
        await scene.ended("acme/one")


@pytest.mark.parametrize("order", [Order.PAUSE, Order.CANCEL])
async def test_a_policy_stopped_while_it_waits_for_a_slot_keeps_its_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: Order
) -> None:
    """It reports its own step although its assignment names an older checkpoint."""
    async with training(base, tmp_path, train(steps=1000, publish_every_steps=1)) as scene:
        slots, lending = scene.residency.slots, scene.residency.lending
        monkeypatch.setattr(slots, "_wait_s", 0.01)
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step >= 3)
        scene.want(assignment("acme/one", order=Order.PAUSE, saved=2))
        paused = (await scene.ended("acme/one", stage=Stage.PAUSED))["acme/one"]
        rewards = list(scene.roster.rewards()["acme/one"])
        await until(lambda: scene.roster._running["acme/one"].ended)
        taken = [await lending.reserve(f"acme/other-{n}") for n in range(slots.count)]
        scene.want(assignment("acme/one", saved=2))
        await until(lambda: scene.roster._running["acme/one"].course._preparing is not None)
        assert scene.roster.progress()["acme/one"].step == paused.step
        scene.want(assignment("acme/one", order=order, saved=2))
        stage = Stage.PAUSED if order is Order.PAUSE else Stage.CANCELLED
        told = (await scene.ended("acme/one", stage=stage))["acme/one"]
        assert (told.step, told.saved, told.tokens) == (paused.step, paused.step, paused.tokens)
        assert (told.published, told.reward_mean) == (paused.published, paused.reward_mean)
        assert list(scene.roster.rewards()["acme/one"]) == rewards
        for slot in taken:
            await lending.release(slot)


async def test_a_reward_that_could_not_be_checked_is_checked_again_before_anything_is_learnt(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, the checking process was lost: the repeated check then finds the invalid pattern."""
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.05)
    check, lost = Scorer.check, [True]

    async def losing(scorer: Scorer) -> None:
        if lost and lost.pop():
            raise RewardUnavailable("reward.regex", "could not be checked; trying again")
        await check(scorer)

    monkeypatch.setattr(Scorer, "check", losing)
    async with training(base, tmp_path, train(reward=Reward(regex=Regex(pattern="(")))) as scene:
        scene.want(assignment("acme/one"))
        failure = await scene.failed("acme/one")
        assert "not a valid regular expression" in failure.message
        assert not lost

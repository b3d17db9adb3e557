"""Policies trained by a whole engine: alone and together with the same numbers, resumed, paused, fenced, refused."""

import asyncio
import itertools
import json
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

import grpc
import pytest
from safetensors.torch import load
from structlog.testing import capture_logs

from mint_contracts import sampling_pb2, sampling_pb2_grpc
from mint_contracts.errors import Overloaded, SourceUnavailable, StaleLease
from mint_contracts.source import parent
from mint_contracts.training import (
    Dataset,
    Evaluation,
    ExactMatch,
    Length,
    Loss,
    NumericAnswer,
    Optimizer,
    Regex,
    Reward,
    RewardService,
    TrainSampling,
)
from mint_contracts.training_records import LEASE_TTL_S, Order, Stage, published_in
from mint_engine.examples import shared
from mint_engine.examples.dataset import read_dataset
from mint_engine.policies import course, keeping, patience, revisions, roster
from mint_engine.policies.checkpoints import Record, Shelf, digest_of
from mint_engine.policies.series import Name
from mint_engine.policies.store import LocalStore, store_of
from mint_engine.policies.updates import ALONE_S
from mint_engine.rewards.scorer import Scorer
from mint_engine.scheduling.request import Request, Sampling
from mint_engine.scheduling.stepper import Stepper
from tests.engine.in_process import Engine
from tests.engine.running import save_adapter, save_base
from tests.engine.training.teaching import LINES, Gate, Scene, assignment, hold_updates, train, training
from tests.waiting import until

PROMPT = (5, 6, 7, 8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def saved(scene: Scene, policy: str) -> tuple[tuple[float, ...], bytes]:
    """Rewards and state of a policy's newest checkpoint."""
    found = Shelf(store_of(scene.store), policy).newest()
    assert found is not None
    return found[0].rewards, found[1]


def began(logs: Sequence[Mapping[str, Any]]) -> list[int]:
    """The steps that courses have begun to train at."""
    return [each["step"] for each in logs if each["event"] == "training"]


def stepper_of(scene: Scene) -> Stepper:
    parts = scene.server._services.parts
    assert parts is not None
    return parts.stepper


def fill(scene: Scene) -> None:
    """Ask for so much, each time by another adapter, that the engine takes nothing more."""
    with suppress(Overloaded):
        for n in itertools.count():
            request = Request(str(n), PROMPT, Sampling(max_tokens=1, seed=0), adapter=f"tenant/{n}")
            stepper_of(scene).submit(request, lambda _: None)


async def whole(base: Path, folder: Path, policy: str, **changes: Any) -> tuple[tuple[float, ...], bytes]:
    """What a course gives that nobody disturbs."""
    async with training(base, folder, train(**changes)) as scene:
        scene.want(assignment(policy))
        await scene.ended(policy)
        return saved(scene, policy)


async def test_a_policy_learns_for_its_steps_and_lets_go_of_its_slot(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path) as scene:
        scene.want(assignment("acme/one"))
        told = (await scene.ended("acme/one"))["acme/one"]
        assert (told.step, told.steps, told.stage, told.lease) == (3, 3, Stage.COMPLETE, 1)
        assert told.tokens > 0
        assert told.reward_best == max(scene.roster.rewards()["acme/one"])
        assert len(scene.roster.rewards()["acme/one"]) == 3
        await until(lambda: len(scene.residency.slots.free) == 10)


async def test_numbers_are_the_same_alone_and_together(base: Path, tmp_path: Path) -> None:
    names = [f"acme/p{n}" for n in range(4)]
    async with training(base, tmp_path / "together") as scene:
        scene.want(*[assignment(name) for name in names])
        await scene.ended(*names)
        together = {name: saved(scene, name) for name in names}
    for name in names[:2]:
        assert await whole(base, tmp_path / name, name) == together[name]
    assert len({state for _, state in together.values()}) == len(names)


async def test_a_policy_that_was_paused_goes_on_as_if_nothing_had_been(base: Path, tmp_path: Path) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=6)
    async with training(base, tmp_path, train(steps=6)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step >= 2)
        scene.want(assignment("acme/one", order=Order.PAUSE))
        told = (await scene.ended("acme/one", stage=Stage.PAUSED))["acme/one"]
        assert 2 <= told.step < 6
        await until(lambda: len(scene.residency.slots.free) == 10)
        scene.want(assignment("acme/one"))
        await scene.ended("acme/one")
        assert saved(scene, "acme/one") == undisturbed


async def test_another_engine_goes_on_where_the_last_checkpoint_is(base: Path, tmp_path: Path) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=5)
    async with training(base, tmp_path, train(steps=5)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: Shelf(store_of(scene.store), "acme/one").newest())
        scene.want()  # the lease is gone in the middle of whatever it does
        await until(lambda: len(scene.residency.slots.free) == 10)
        kept, _ = saved(scene, "acme/one")
    async with training(base, tmp_path, train(steps=5)) as scene:
        with capture_logs() as logs:
            scene.want(assignment("acme/one", lease=2))
            await scene.ended("acme/one")
        assert began(logs)[0] >= len(kept) > 0  # a thread that was just writing may have ended only then
        assert saved(scene, "acme/one") == undisturbed


async def test_an_engine_that_ends_saves_what_is_finished(base: Path, tmp_path: Path) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=6)
    seldom = train(steps=6, checkpoint_every_steps=100)
    async with training(base, tmp_path, seldom) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step >= 2)
        await scene.roster.close()
        rewards, _ = saved(scene, "acme/one")
        assert 2 <= len(rewards) <= 6
    async with training(base, tmp_path, seldom) as scene:
        with capture_logs() as logs:
            scene.want(assignment("acme/one", lease=2))
            await scene.ended("acme/one")
        assert began(logs) == [len(rewards)]
        assert saved(scene, "acme/one") == undisturbed


async def test_a_step_that_is_learnt_counts_though_its_course_was_cancelled_meanwhile(
    base: Path, tmp_path: Path
) -> None:
    async with training(base, tmp_path, train(steps=6, checkpoint_every_steps=100)) as scene:
        scene.want(assignment("acme/one"))
        desk, learn = scene.means.desk, scene.means.desk.learn
        at_step = 2

        async def learn_and_end(*given: Any, **options: Any) -> Any:
            if scene.roster.progress()["acme/one"].step == at_step:
                closing.append(asyncio.create_task(scene.roster.close()))
            return await learn(*given, **options)

        closing: list[asyncio.Task[None]] = []
        desk.learn = learn_and_end  # type: ignore[method-assign]
        await until(lambda: closing and closing[0].done())
        rewards, _ = saved(scene, "acme/one")
        assert len(rewards) == at_step + 1


@pytest.mark.parametrize("epochs", [1, 2])
async def test_an_engine_that_ends_in_the_middle_of_an_update_saves_nothing_of_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    seldom: dict[str, Any] = {"steps": 3, "inner_epochs": epochs, "checkpoint_every_steps": 100}
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", **seldom)
    monkeypatch.setattr(roster, "CLOSE_S", ALONE_S)  # the step thread is held for longer, and stops after its piece
    async with training(base, tmp_path, train(**seldom)) as scene:
        with Gate(after=2 * epochs - 1) as updating:  # the last epoch of the second step
            hold_updates(scene, updating)
            scene.want(assignment("acme/one"))
            await updating.reached()
            await scene.roster.close()
            draining = asyncio.create_task(scene.server.drain(20))
            await until(lambda: stepper_of(scene)._stopping)
        assert await draining
        await until(lambda: not scene.roster._leaving)
        kept = Shelf(store_of(scene.store), "acme/one").newest()
        assert kept is None or "gradient" not in load(kept[1])
    async with training(base, tmp_path, train(**seldom)) as scene:
        with capture_logs() as logs:
            scene.want(assignment("acme/one", lease=2))
            await scene.ended("acme/one")
        assert began(logs) == [1 if epochs == 1 else 0]
        assert saved(scene, "acme/one") == undisturbed


async def test_a_cancelled_policy_is_saved_and_publishes_nothing_more(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=100)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step >= 1)
        scene.want(assignment("acme/one", order=Order.CANCEL))
        told = (await scene.ended("acme/one", stage=Stage.CANCELLED))["acme/one"]
        rewards, _ = saved(scene, "acme/one")
        assert len(rewards) == told.step
        assert revisions.newest(store_of(scene.store), "acme/one", 0) is None


async def test_without_a_sure_lease_nothing_is_begun_or_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lapses when a checkpoint is on its way, and comes back."""
    now, looks = 0.0, 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return now

    def lapse(blob: bytes) -> str:
        nonlocal now
        now += LEASE_TTL_S + 1
        monkeypatch.setattr(keeping, "digest_of", digest_of)
        return digest_of(blob)

    monkeypatch.setattr(keeping, "digest_of", lapse)
    async with training(base, tmp_path, train(steps=100), clock=clock) as scene:
        scene.want(assignment("acme/one"))
        course, store = scene.roster._running["acme/one"].course, store_of(scene.store)
        shelf = Shelf(store, "acme/one")
        await until(lambda: course.waits)
        at, before = course.progress.step, looks
        await until(lambda: looks >= before + 8)  # whoever waits has asked again, and been told that it is not sure
        assert course.progress.step == at
        assert store.names(shelf.folder) == []
        scene.roster.confirm()
        await until(shelf.newest)
        await until(lambda: course.progress.step > at)


async def test_a_trainer_under_an_old_lease_fails_and_harms_nothing(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=100)) as scene:
        shelf = Shelf(store_of(scene.store), "acme/one")
        scene.want(assignment("acme/one", lease=1))
        await until(shelf.newest)
        shelf.save(Record("acme/one", "default/wave", 2, 1, digest_of(b"new")), b"new")
        told = (await scene.ended("acme/one", stage=Stage.FAILED))["acme/one"]
        assert told.failure is not None
        assert told.failure.reason == StaleLease.__name__
        newest = shelf.newest()
        assert newest is not None
        assert newest[1] == b"new"


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"dataset": None}, "InvalidRequest", "has no dataset"),
        ({"reward": None}, "InvalidRequest", "has no reward"),
        (
            {"reward": None, "algorithm": "SFT", "evaluation": Evaluation()},
            "InvalidRequest",
            "has no reward to score its evaluations by",
        ),
        ({"dataset": Dataset(lines=["{"])}, "BadExample", "line 1: is no JSON"),
        ({"reward": Reward(regex=Regex("("))}, "InvalidRequest", "no regular expression"),
        ({"reward": Reward(numeric_answer=NumericAnswer())}, "BadExample", "is no number"),
        ({"loss": Loss(type="cross_entropy")}, "InvalidRequest", "cross_entropy"),
    ],
)
async def test_a_policy_that_can_not_be_trained_fails_with_the_reason_and_alone(
    base: Path, tmp_path: Path, changes: dict[str, Any], reason: str, message: str
) -> None:
    async with training(base, tmp_path, train(**changes)) as scene:
        scene.want(assignment("acme/one"))
        failure = (await scene.ended("acme/one", stage=Stage.FAILED))["acme/one"].failure
        assert failure is not None
        assert failure.reason == reason
        assert message in failure.message
        await until(lambda: len(scene.residency.slots.free) == 10)


async def test_a_neighbour_that_fails_changes_nothing(base: Path, tmp_path: Path) -> None:
    alone = await whole(base, tmp_path / "alone", "acme/one")
    async with training(base, tmp_path) as scene:
        wild = Optimizer(learning_rate=1e30, max_grad_norm=0.0)
        scene.want(assignment("acme/one"), assignment("acme/wild", optimizer=wild))
        await until(lambda: scene.roster.progress()["acme/one"].stage is Stage.COMPLETE)
        assert saved(scene, "acme/one") == alone
        told = (await scene.ended("acme/wild", stage=Stage.FAILED))["acme/wild"]
        assert told.step == 1, "what its first step made of it went into a slot"
        assert told.failure is not None
        assert "acme/wild: computes NaN or infinity" in told.failure.message


async def test_an_update_follows_only_from_groups_with_a_signal(base: Path, tmp_path: Path) -> None:
    never = Reward(exact_match=ExactMatch())
    async with training(base, tmp_path, train(reward=never, steps=2)) as scene:
        scene.want(assignment("acme/one"))
        told = (await scene.ended("acme/one"))["acme/one"]
        assert (told.step, told.reward_mean, told.tokens) == (2, 0.0, 0)


async def test_what_was_sampled_at_a_temperature_is_learnt_at_it(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(sampling=TrainSampling(max_tokens=8, temperature=0.5))) as scene:
        drifts: list[float] = []
        desk, learn = scene.means.desk, scene.means.desk.learn

        async def noted(*args: Any, **options: Any) -> Any:
            learnt = await learn(*args, **options)
            drifts.append(learnt.outcome.metrics["drift"])
            return learnt

        desk.learn = noted  # type: ignore[method-assign]
        scene.want(assignment("acme/one"))
        await scene.ended("acme/one")
        assert drifts
        assert max(drifts) < 1e-4, "trainer and sampler tell a token's probability alike, as it was drawn"


async def test_evaluations_are_greedy_and_scored(base: Path, tmp_path: Path) -> None:
    """As a client's greedy answers would be, from what was published at the same step."""
    reward = Length(target=12, tolerance=12)
    scored = {"reward": Reward(length=reward), "evaluation": Evaluation(every_steps=2, prompts=3)}
    async with training(base, tmp_path, train(**scored)) as scene:
        scene.want(assignment("acme/one"))
        told = (await scene.ended("acme/one"))["acme/one"]
        assert told.published is not None
        assert told.published.step == told.step
        async with grpc.aio.insecure_channel(f"127.0.0.1:{scene.server.port}") as channel:
            sampler = sampling_pb2_grpc.SamplerStub(channel)
            answers = [await answer(sampler, "acme/one", json.loads(line)["prompt"]) for line in LINES[:3]]
        distances = [abs(len(text.strip()) - reward.target) for text in answers]
        assert told.evaluation == pytest.approx(fmean(max(0.0, 1 - each / reward.tolerance) for each in distances))


async def answer(sampler: "sampling_pb2_grpc.SamplerAsyncStub", policy: str, prompt: str) -> str:
    """Eight tokens' text, greedy."""
    sampling = sampling_pb2.SamplingParams(max_tokens=8)
    request = sampling_pb2.GenerateRequest(adapter=policy, text=prompt, sampling=sampling)
    return "".join([event.chunk.text async for event in sampler.Generate(request, timeout=60)])


async def test_an_evaluation_that_a_pause_or_an_end_cut_off_is_made_up_for(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=2)) as scene:
        scene.want(assignment("acme/one"))
        assert (await scene.ended("acme/one"))["acme/one"].evaluation is None
    async with training(base, tmp_path, train(steps=2, evaluation=Evaluation(every_steps=2, prompts=3))) as scene:
        scene.want(assignment("acme/one", lease=2))
        assert (await scene.ended("acme/one"))["acme/one"].evaluation is not None


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


@pytest.fixture
def scorers(monkeypatch: pytest.MonkeyPatch) -> list[Scorer]:
    """All that are made."""
    made: list[Scorer] = []

    class Noted(Scorer):
        def __init__(self, reward: Reward) -> None:
            super().__init__(reward)
            made.append(self)

    monkeypatch.setattr(course, "Scorer", Noted)
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)
    return made


def connected(scorers: Sequence[Scorer]) -> list[bool]:
    """Which may still have a connection to their service."""
    services = [part.service for scorer in scorers for part in scorer._parts if part.service is not None]
    return [each._channel.get_state() is not grpc.ChannelConnectivity.SHUTDOWN for each in services]


@pytest.mark.parametrize("how", ["pause", "cancel", "lease gone", "engine ends"])
@pytest.mark.parametrize("loads", [False, True])
async def test_however_a_course_ends_it_leaves_no_connection_to_its_reward_service(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scorers: list[Scorer], how: str, *, loads: bool
) -> None:
    """While its service is away, or already while it waits for a slot, again and again."""
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


async def test_a_policy_whose_connection_can_not_be_closed_lets_go_of_its_slot_and_weights_all_the_same(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_: Scorer) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(Scorer, "close", fail)
    async with training(base, tmp_path, train(steps=1)) as scene:
        scene.want(assignment("acme/one"))
        await scene.ended("acme/one")
        await until(lambda: len(scene.residency.slots.free) == scene.residency.slots.count)
        assert await scene.means.desk.call(lambda trainer: trainer.names) == frozenset()
        with suppress(RuntimeError):
            await scene.roster._running["acme/one"].task


async def test_who_waits_for_examples_takes_no_slot_and_who_waits_for_a_slot_holds_no_examples(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)
    monkeypatch.setattr(course, "HELD_S", 0.0)
    async with training(base, tmp_path, train(steps=1)) as scene:
        lending, slots, datasets = scene.residency.lending, scene.residency.slots, scene.means.datasets
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
        await until(lambda: (told := scene.roster.progress()["acme/one"].failure) and "slots in use" in told.message)
        tries = len(free)
        await until(lambda: not datasets._held)
        for slot in taken:
            await lending.release(slot)
        await scene.ended("acme/one")
        assert len(free) == tries + 1, "they were read again, once, when there was a slot"


@pytest.mark.parametrize("waits_for", ["its turn to read", "a slot", "a data set that is away"])
async def test_an_order_to_cancel_is_heard_at_once_by_who_waits_for_a_place_or_for_examples(
    base: Path, tmp_path: Path, waits_for: str
) -> None:
    (tmp_path / "train.jsonl").write_text(LINES[0])
    name = "train.jsonl" if waits_for != "a data set that is away" else "away.parquet"
    told = train(dataset=Dataset(uri=f"file://{tmp_path}/{name}"))
    async with training(base, tmp_path, told) as scene:
        lending, slots, datasets = scene.residency.lending, scene.residency.slots, scene.means.datasets
        taken = list[int]()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(slots, "_wait_s", 0.01)
            if waits_for == "a slot":
                taken = [await lending.reserve(f"acme/other-{n}") for n in range(slots.count)]
            elif waits_for == "its turn to read":
                for _ in range(shared.AT_ONCE):
                    await datasets._room.acquire()
            else:
                patched.setattr(shared, "read_dataset", refuse)
            with capture_logs() as logs:
                scene.want(assignment("acme/one"))
                await until(lambda: datasets._room._waiters or any(each["event"] == "tried_again" for each in logs))
            scene.want(assignment("acme/one", order=Order.CANCEL))
            ended = (await scene.ended("acme/one", stage=Stage.CANCELLED))["acme/one"]
        assert ended.failure is None
        for slot in taken:
            await lending.release(slot)
        await until(lambda: len(slots.free) == slots.count)


def refuse(told: Dataset) -> Any:
    raise SourceUnavailable(f"dataset {told.uri!r}", "did not answer")


async def test_a_full_engine_is_waited_for(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)
    async with training(base, tmp_path, train(steps=2, checkpoint_every_steps=100)) as scene:
        with Gate() as stepping:
            desk, learn, held = scene.means.desk, scene.means.desk.learn, list[asyncio.Task[None]]()

            async def learn_and_fill(*given: Any, **options: Any) -> Any:
                learnt = await learn(*given, **options)
                if not held:
                    held.append(asyncio.create_task(desk.call(lambda _: stepping.go_by())))
                    await stepping.reached()
                    fill(scene)
                return learnt

            desk.learn = learn_and_fill  # type: ignore[method-assign]
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


@pytest.mark.parametrize("away", ["names", "write"])
async def test_a_cancelled_policy_whose_store_stays_away_is_cancelled(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away: str
) -> None:
    """While it loads, or once it has learnt something, which is then lost: it has not failed."""
    monkeypatch.setattr(patience, "ATTEMPTS", 2)
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.2)

    def fail(store: LocalStore, path: str, *_: object) -> None:
        raise SourceUnavailable(f"store {store.source.uri!r}", f"could not serve {path}")

    monkeypatch.setattr(LocalStore, away, fail)
    async with training(base, tmp_path, train(steps=1000)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: (told := scene.roster.progress()["acme/one"]).step or told.failure)
        scene.want(assignment("acme/one", order=Order.CANCEL))
        told = (await scene.ended("acme/one", stage=Stage.CANCELLED))["acme/one"]
        assert told.failure is None


async def test_supervised_learning_raises_the_likelihood_of_the_answers(base: Path, tmp_path: Path) -> None:
    told = train(algorithm="SFT", reward=None, steps=12, prompts_per_step=4, optimizer=Optimizer(learning_rate=2e-2))
    async with training(base, tmp_path, told) as scene:
        scene.want(assignment("acme/one"))
        await scene.ended("acme/one")
        rewards = scene.roster.rewards()["acme/one"]
        assert rewards[-1] > rewards[0] + 1.0


async def test_a_published_revision_is_served_at_once_without_reading_storage(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(publish_every_steps=1)) as scene:
        engine = Engine(scene.slots, scene.residency._climber._loader, scene.residency, stepper_of(scene))
        scene.want(assignment("acme/one"))
        published = (await scene.ended("acme/one"))["acme/one"].published
        assert published is not None
        assert published.step == 3
        told = await engine.ask("acme/one", PROMPT, 4)
        assert told.revision == published.revision
        assert not scene.residency.books.disk.holds(published.source)
        scene.want()
    # Another engine, which knows nothing but the source, loads the very same.
    async with training(base, tmp_path / "other") as other:
        loader = other.residency._climber._loader
        with loader.disk.using(published.source):
            assert loader.load(published.source).revision == published.revision


async def test_what_is_published_when_the_lease_has_gone_is_not_served_above_the_map(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStore.write

    def write_late(store: LocalStore, path: str, data: bytes) -> None:
        if path.startswith("revisions/"):
            writing.go_by()
        write(store, path, data)

    monkeypatch.setattr(LocalStore, "write", write_late)
    async with training(base, tmp_path, train(steps=100, publish_every_steps=1)) as scene:
        with Gate() as writing, Gate(after=1) as updating:
            hold_updates(scene, updating)
            scene.want(assignment("acme/one"))
            course = scene.roster._running["acme/one"].course
            await writing.reached()
            await updating.reached()  # the course has to wait for the end of this step
            scene.want()
            writing.open()
            await until(lambda: course.progress.published)
            assert not scene.residency.lending.offered
            updating.open()
            await until(lambda: len(scene.residency.slots.free) == 10)
            assert not scene.residency.lending.offered


async def test_a_policy_starts_from_an_adapter(base: Path, tmp_path: Path) -> None:
    save_adapter(base, tmp_path / "adapters" / "acme" / "parent", rank=4)
    never = Reward(exact_match=ExactMatch())
    async with training(base, tmp_path, train(reward=never, steps=1)) as scene:
        scene.want(assignment("acme/child", start_from="acme/parent"))
        published = (await scene.ended("acme/child"))["acme/child"].published
        assert published is not None
        begun_from = await scene.residency.lending.read("acme/parent")
        assert parent(published.source) == published_in(scene.store, "acme/child").uri
        with (loader := scene.residency._climber._loader).disk.using(published.source):
            assert loader.load(published.source).run.equal(begun_from.run)


async def test_more_steps_while_a_policy_runs_stretch_its_schedule(base: Path, tmp_path: Path) -> None:
    falling = {"optimizer": Optimizer(learning_rate=1e-2, schedule="linear"), "checkpoint_every_steps": 3}
    async with training(base, tmp_path, train(steps=3, **falling)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step)
        scene.want(assignment("acme/one"), told=train(steps=6, **falling))
        await until(lambda: scene.roster.progress()["acme/one"].step == 6)
        await scene.ended("acme/one")
        shelf = Shelf(store_of(scene.store), "acme/one")
        third, sixth = (load(shelf.read(str(Name(1, step))))["weights"] for step in (3, 6))
        assert not third.equal(sixth), "the old end was the schedule's end"


async def test_what_was_published_after_a_checkpoint_is_what_is_served_after_a_death(
    base: Path, tmp_path: Path
) -> None:
    async with training(base, tmp_path, train(steps=2, publish_every_steps=1)) as scene:
        scene.want(assignment("acme/one"))
        published = (await scene.ended("acme/one"))["acme/one"].published
        assert published is not None
        loader = scene.residency._climber._loader
        with loader.disk.using(published.source):
            packed = loader.load(published.source)
        later = revisions.publish(store_of(scene.store), "acme/one", Name(1, 5), packed)
    async with training(base, tmp_path, train(steps=2, publish_every_steps=1)) as scene:
        scene.want(assignment("acme/one", lease=2))
        assert (await scene.ended("acme/one"))["acme/one"].published == later


async def test_more_steps_for_a_complete_policy_are_taken(base: Path, tmp_path: Path) -> None:
    undisturbed = await whole(base, tmp_path / "whole", "acme/one", steps=4)
    async with training(base, tmp_path, train(steps=2)) as scene:
        scene.want(assignment("acme/one"))
        await scene.ended("acme/one")
        scene.want(assignment("acme/one"), told=train(steps=4))
        await until(lambda: scene.roster.progress()["acme/one"].step == 4)
        await scene.ended("acme/one")
        assert saved(scene, "acme/one") == undisturbed

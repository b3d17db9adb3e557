"""Policies are made outside the step thread, which decodes meanwhile and only puts them in."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from mint_contracts import training_pb2 as pb
from mint_engine.requests.events import Done, Event, Failed
from mint_engine.requests.parameters import Sampling
from mint_engine.scheduling.request import Request
from mint_engine.training import policy as policies
from mint_engine.training import state
from mint_engine.training.policy import PolicySettings
from tests.engine.training.calling import called, lesson, refused
from tests.engine.training.scene import trainer_of
from tests.engine.training.training_engine import PROMPT, Gate, Scene, assignment, train, training
from tests.waiting import until

ONE = pb.CreatePolicyRequest(policy="one", rank=4)
ANSWERED_S = 50.0  # shorter than the gate's own timeout


class Making(Gate):
    """A gate patched in front of a function of the engine, to hold the thread that makes a policy."""

    def __init__(self, patched: pytest.MonkeyPatch, module: Any, name: str) -> None:
        super().__init__()
        self.begun = self.under_way = self.most = 0
        make, lock = getattr(module, name), threading.Lock()

        def held_up(*told: Any) -> Any:
            with lock:
                self.begun, self.under_way = self.begun + 1, self.under_way + 1
                self.most = max(self.most, self.under_way)
            try:
                self.go_by()
                return make(*told)
            finally:
                with lock:
                    self.under_way -= 1

        patched.setattr(module, name, held_up)


async def answered(scene: Scene) -> None:
    """Send a tenant's request and wait for its answer."""
    ended = asyncio.Event()

    def sink(event: Event) -> None:
        if isinstance(event, Done | Failed):
            ended.set()

    scene.stepper.submit(Request(PROMPT, Sampling(max_tokens=4, seed=0, ignore_eos=True)), sink)
    async with asyncio.timeout(ANSWERED_S):
        await ended.wait()


async def names(scene: Scene) -> frozenset[str]:
    return await scene.context.step_thread.call(lambda trainer: trainer.names)


async def test_tenants_are_answered_while_a_wave_has_policies_made_new_or_from_checkpoints(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with training(base, tmp_path, train(steps=1)) as scene:
        for lease, (module, name) in enumerate([(policies, "fresh"), (state, "from_bytes")], start=1):
            with Making(monkeypatch, module, name) as making:
                scene.want(assignment("acme/one", lease), told=train(steps=lease))
                await making.reached()
                await answered(scene)
                making.open()
                found = await scene.ended("acme/one")
            assert (making.begun, found["acme/one"].step) == (1, lease)


async def test_tenants_are_answered_while_a_client_has_policies_made_new_or_from_checkpoints(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        with Making(monkeypatch, policies, "fresh") as making:
            creating = stub.CreatePolicy(ONE)
            await making.reached()
            await answered(scene)
            making.open()
            await creating
        first = await stub.ForwardBackward(lesson("one", 1))
        saved = await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=2))
        with Making(monkeypatch, state, "from_bytes") as making:
            loading = stub.LoadState(pb.LoadStateRequest(policy="one", sequence=3, uri=saved.uri))
            await making.reached()
            await answered(scene)
            making.open()
            await loading
        assert await stub.ForwardBackward(lesson("one", 4)) == first


async def test_policies_are_made_one_at_a_time(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [assignment(f"acme/{number}") for number in range(3)]
    async with training(base, tmp_path, train(steps=1)) as scene:
        with Making(monkeypatch, policies, "fresh") as making:
            scene.want(*wanted)
            await making.reached()
            await until(lambda: len(scene.context.step_thread._making._waiters or ()) == len(wanted) - 1)
            making.open()
            await scene.ended(*(each.policy for each in wanted))
        assert (making.begun, making.most) == (3, 1)


async def test_a_course_that_ends_while_its_policy_is_made_leaves_nothing_and_the_next_begins_after_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with training(base, tmp_path, train(steps=1)) as scene:
        with Making(monkeypatch, policies, "fresh") as making:
            scene.want(assignment("acme/one", lease=1), assignment("acme/two", lease=1))
            await making.reached()
            await until(lambda: scene.context.step_thread._making._waiters)
            scene.want(assignment("acme/one", lease=2))
            await until(lambda: len(scene.roster._leaving) == 1)
            assert await names(scene) == frozenset(), "one waited for its turn, the other is made in vain"
            making.open()
            await scene.ended("acme/one")
        assert (making.begun, making.most) == (2, 1)

        async def gone() -> bool:
            return not await names(scene)

        await until(gone)  # a course releases its policy after it has reported its end


async def test_a_policy_that_is_dropped_while_it_is_made_is_gone_once_it_is(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        with Making(monkeypatch, policies, "fresh") as making:
            creating = stub.CreatePolicy(ONE)
            await making.reached()
            dropping = asyncio.create_task(_drop(stub))
            await until(lambda: scene.server.register._calls["one"]._turn._waiters)
            making.open()
            await asyncio.gather(creating, dropping)
        assert await names(scene) == frozenset()
        await stub.CreatePolicy(ONE)
        assert (await stub.ForwardBackward(lesson("one", 1))).tokens == 3


@pytest.mark.parametrize("rank", [4, 99])
async def test_a_call_of_a_policy_that_is_being_made_waits_until_it_is_there_or_refused(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, rank: int
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        with Making(monkeypatch, policies, "form_of") as making:
            creating = stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=rank))
            await making.reached()
            learning = stub.ForwardBackward(lesson("one", 1))
            await until(lambda: scene.server.register._calls["one"]._turn._waiters)
            making.open()
        if rank == 4:
            await creating
            assert (await learning).tokens == 3
        else:
            assert (await refused(creating)).reason == "RankTooLarge"
            assert (await refused(learning)).reason == "PolicyNotFound"


@pytest.mark.parametrize(("defect", "reason"), [(RuntimeError, "Internal"), (MemoryError, "Overloaded")])
async def test_a_defect_in_the_making_is_told_and_the_step_thread_looks_at_the_device(
    base: Path, tmp_path: Path, defect: type[Exception], reason: str
) -> None:
    looks: list[bool] = []

    def fail(*_: object) -> Any:
        raise defect("too bad")

    async with called(base, tmp_path) as (scene, stub):
        updates = scene.updates
        stepping = scene.stepper._thread

        def computes() -> bool:
            looks.append(threading.current_thread() is stepping)
            return True

        updates.defects.computes = computes
        with pytest.MonkeyPatch.context() as patched, capture_logs():
            patched.setattr(policies, "fresh", fail)
            error = await refused(stub.CreatePolicy(ONE))
        assert (error.reason, error.message) == (reason, f"has a defect ({defect.__name__}: too bad)")
        assert looks == [True]
        await stub.CreatePolicy(ONE)


async def test_a_name_that_is_trained_under_already_is_refused_before_anything_is_made(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        policy = await scene.context.step_thread.make(lambda maker: maker.fresh("one", PolicySettings(4)))
        scene.context.residency.room.take("one", scene.context.step_thread.maker.needs_for(policy))
        await scene.context.step_thread.call(lambda trainer: trainer.add(policy))
        with Making(monkeypatch, policies, "form_of") as making:
            error = await refused(stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=99)))
        assert (error.reason, error.message) == ("InvalidRequest", "is already trained here; drop it first")
        assert not making.begun
        await scene.context.step_thread.call(lambda trainer: trainer.drop("one"))
        scene.context.residency.room.leave("one")


def test_policies_of_a_kind_have_one_form_whichever_threads_make_them() -> None:
    maker = trainer_of().maker
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda number: maker.fresh(f"p/{number}", PolicySettings(3, seed=number)), range(32)))
    assert len({id(each.form) for each in made}) == 1


async def test_a_policy_that_can_not_be_made_once_its_client_is_gone_is_logged(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        with Making(monkeypatch, policies, "form_of") as making, capture_logs() as logs:
            creating = asyncio.create_task(scene.server.register.create("one", PolicySettings(rank=99)))
            await making.reached()
            creating.cancel()
            with suppress(asyncio.CancelledError):
                await creating
            making.open()
            await until(lambda: [each for each in logs if each["event"] == "failed_after_its_caller_left"])
        [told] = [each for each in logs if each["event"] == "failed_after_its_caller_left"]
        assert (told["policy"], told["kind"]) == ("one", "RankTooLarge")
        await stub.CreatePolicy(ONE)


async def _drop(stub: Any) -> None:
    await stub.DropPolicy(pb.DropPolicyRequest(policy="one"))

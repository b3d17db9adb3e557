"""An engine ends in good order, and keeps what it has promised, even if one of its ranks hangs or dies."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest

from mint_contracts import training_pb2, training_pb2_grpc
from mint_contracts.errors import EngineUnavailable, MintError, PolicyNotFound
from mint_contracts.settings import ENGINE_RESERVE_S, REDIS_URL
from mint_contracts.source import Source
from mint_engine import process, serve
from mint_engine.environment import Start
from mint_engine.parallel import ranks
from mint_engine.policies.updates.updates import Job, Learnt
from mint_engine.residency import residency
from tests.engine.parallel.learning import Learning
from tests.engine.parallel.processes import followers
from tests.engine.running import running, save_base, settings_for
from tests.engine.training.calling import called, lesson, refused, resume, taught
from tests.engine.training.scene import OPTIMIZER
from tests.waiting import until

LONG_S = 1.0  # for one piece of an update of this small base
LIMIT_S = 60.0  # only a failing test waits this long


async def started(base: Path, folder: Path, **settings: Any) -> tuple[process.Process, serve.EngineServer]:
    """Start a training engine that is yet to load its base, with its stores in `folder`."""
    (folder / "runs").mkdir()
    store = Source(f"file://{folder}/runs")
    told = settings_for(base, training_store=store, host_bytes=64 << 20, **settings)
    server = await serve.listen(told, "tiny-1", 0)
    return process.Process(Start(told, "tiny-1", "127.0.0.1:1", folder / "cache", 0, 0), server), server


async def test_a_rank_that_hangs_within_an_update_keeps_no_engine_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for the update gets an error, and no policy has changed."""
    monkeypatch.setattr(serve, "_STOP_S", 0.5)
    monkeypatch.setattr(ranks, "_END_S", 0.5)
    base, others, told = save_base(tmp_path / "base"), followers(), list[Learnt | MintError]()
    store = Source(f"file://{tmp_path}/runs")
    async with running(base, tensor_parallel_size=2, training_store=store) as engine:
        server, updates = engine.server, engine.server._updates
        assert updates is not None
        here = Learning(updates.trainer, server.slots, server.generation)
        here.create()
        policy = updates.trainer.policy("p/0")
        before = policy.weights.clone()
        (rank,) = set(followers()) - set(others)
        os.kill(rank, signal.SIGSTOP)
        updates.put(Job(here.batches([0])[0], OPTIMIZER, lambda _: None, told.append))
        assert server._services.parts is not None
        stepper = server._services.parts.stepper
        stepper.wake()
        await until(lambda: updates._work is not None and stepper.stalled_s() > LONG_S)
    (error,) = told
    assert isinstance(error, EngineUnavailable)
    assert (policy.busy, policy.step) == (False, 0)
    assert policy.weights.equal(before)


async def check_only_one_goes_on(
    base: Path, tmp_path: Path, made: training_pb2.PolicyState, busy: training_pb2.PolicyState
) -> None:
    """Check that another engine can resume "one" after its last acknowledged call, and nobody the other."""
    async with called(base, tmp_path) as (_, stub):
        found = await stub.ResumePolicy(resume("one", made.life))
        assert (found.life, found.sequence, found.step) == (made.life, 3, 1)
        assert isinstance(await refused(stub.ResumePolicy(resume("busy", busy.life))), PolicyNotFound)


@pytest.mark.parametrize("told_to_end", [False, True])
async def test_what_policies_have_learnt_outlives_a_rank_that_dies(
    tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch, told_to_end: bool
) -> None:
    """The engine ends, too, but first saves them: another engine continues each after its last acknowledged call.

    But not the one whose call was under way: it may be why the rank has died, and would end the next engine, too.
    This also holds if the rank dies while the engine, told to end, already waits for that call.
    """
    monkeypatch.setenv(REDIS_URL, redis_server)
    base, others = save_base(tmp_path / "base"), followers()
    ending, server = await started(base, tmp_path, tensor_parallel_size=2)
    following = asyncio.create_task(ending.follow())
    await ending.load_base()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = training_pb2_grpc.TrainerStub(channel)
        made, busy = [await taught(stub, name) for name in ("one", "busy")]
        (rank,) = set(followers()) - set(others)
        os.kill(rank, signal.SIGSTOP)
        call = asyncio.ensure_future(stub.ForwardBackward(lesson("busy", 4)))
        await until(lambda: server._updates is not None and server._updates._work is not None)
        draining = asyncio.create_task(ending.drain()) if told_to_end else None
        await until(lambda: server.register._draining is told_to_end)
        os.kill(rank, signal.SIGKILL)
        await server.lost.wait()
        if draining is not None:
            await draining
        else:
            assert await ending.abort() == process.DEFECT
        assert not (await refused(call)).terminal
    following.cancel()
    await asyncio.wait({following})
    await check_only_one_goes_on(base, tmp_path, made, busy)
    if not told_to_end:
        await ending.drain()
    await ending.agent.leave()


async def test_what_policies_have_learnt_outlives_a_defect_that_ends_the_step_thread(
    tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not what the policy has learnt whose call was under way: it may be why."""

    def end(*_: object) -> None:
        raise KeyError("busy")

    monkeypatch.setenv(REDIS_URL, redis_server)
    base = save_base(tmp_path / "base")
    ending, server = await started(base, tmp_path)
    following = asyncio.create_task(ending.follow())
    await ending.load_base()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = training_pb2_grpc.TrainerStub(channel)
        made, busy = [await taught(stub, name) for name in ("one", "busy")]
        monkeypatch.setattr(server._updates, "_end", end)
        call = asyncio.ensure_future(stub.ForwardBackward(lesson("busy", 4)))
        await server.lost.wait()
        assert await ending.abort() == process.DEFECT
        async with asyncio.timeout(LIMIT_S):
            assert not (await refused(call)).terminal
    following.cancel()
    await asyncio.wait({following})
    await check_only_one_goes_on(base, tmp_path, made, busy)
    await ending.drain()
    await ending.agent.leave()


def test_the_end_of_an_engine_whose_ranks_hang_fits_in_its_pods_grace() -> None:
    """However long its requests take, and even if each other rank of eight must be killed."""
    steps = serve._STOP_S + ranks._END_S + 6 * ranks._LEAST_S + serve._RELEASED_S
    assert process.TELL_S + steps + 2 * serve._STOP_S + residency.CLOSE_S < ENGINE_RESERVE_S

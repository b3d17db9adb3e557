"""The liveness probe of an engine's pod: alive while it waits for its base or for work, and while it drains."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mint_contracts import engine_pb2, engine_pb2_grpc
from mint_contracts.errors import Draining, EngineUnavailable
from mint_contracts.settings import LIVENESS_SERVICE
from mint_contracts.wire import from_rpc_error
from mint_engine import serve
from mint_engine.build import build
from mint_engine.requests.events import Done, Event, Failed, Tokens
from mint_engine.requests.parameters import Sampling
from mint_engine.scheduling.budget import Share
from mint_engine.scheduling.request import Request
from mint_engine.scheduling.scheduler import Limits
from mint_engine.scheduling.stepper import Stepper
from mint_engine.serve import listen
from mint_engine.server import STALL_S
from tests.engine.running import ask, running, save_base, settings_for
from tests.waiting import PATIENCE_S, until


async def test_an_engine_without_its_base_is_alive_and_not_ready(tmp_path: Path) -> None:
    server = await listen(settings_for(tmp_path / "absent"), "tiny-0", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        alive = await health.Check(health_pb2.HealthCheckRequest(service=LIVENESS_SERVICE))
        ready = await health.Check(health_pb2.HealthCheckRequest())
        await server.drain(1)
    assert alive.status == health_pb2.HealthCheckResponse.SERVING
    assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_an_engine_lets_go_of_connections_that_carry_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "IDLE_MS", 100)
    server = await listen(settings_for(tmp_path / "absent"), "tiny-0", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    assert b"connection idle" in await asyncio.wait_for(reader.read(), 60)
    writer.close()
    await server.drain(1)


async def test_an_engine_whose_device_computes_nothing_any_more_is_lost(tmp_path: Path) -> None:
    """As after a fault that a device reports at every call: a gateway asks another engine, and this one restarts."""

    def refuse(*_: object) -> torch.Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    async with running(save_base(tmp_path)) as engine:
        assert (await ask(engine, [5, 6], max_tokens=2, ignore_eos=True)).tokens
        engine.server.generation._forward._pass.run = refuse  # type: ignore[assignment, method-assign]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(engine, [5, 6], max_tokens=2)
        assert isinstance(from_rpc_error(refused.value), EngineUnavailable)
        async with asyncio.timeout(60):
            await engine.server.lost.wait()
        health = health_pb2_grpc.HealthStub(engine.channel)

        async def away() -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest())
            return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

        await until(away)
        info = await engine_pb2_grpc.EngineStub(engine.channel).GetInfo(engine_pb2.GetInfoRequest())
        assert not info.ready


async def test_an_engine_whose_step_hangs_says_everywhere_that_it_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(save_base(tmp_path)) as engine:
        monkeypatch.setattr(Stepper, "stalled_s", lambda _: STALL_S + 1)
        info = await engine_pb2_grpc.EngineStub(engine.channel).GetInfo(engine_pb2.GetInfoRequest())
        assert (info.ready, engine.server.ready) == (False, False)


async def test_health_is_watched_on_after_a_look_at_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Stepper) -> float:
        failed.set()
        raise KeyError("an oversight")

    failed = asyncio.Event()
    monkeypatch.setattr(serve, "_WATCH_S", 0.01)
    async with running(save_base(tmp_path)) as engine:
        health = health_pb2_grpc.HealthStub(engine.channel)
        with monkeypatch.context() as broken:
            broken.setattr(Stepper, "stalled_s", fail)
            await asyncio.wait_for(failed.wait(), PATIENCE_S)
        monkeypatch.setattr(Stepper, "stalled_s", lambda _: STALL_S + 1)

        async def dead() -> bool:
            answer = await health.Check(health_pb2.HealthCheckRequest(service=LIVENESS_SERVICE))
            return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

        await until(dead)


class Piece:
    """Background work that one advance completes."""

    busy = False

    def advance(self, requests: int, step_s: float) -> None:
        self.busy = False


async def test_the_step_thread_is_late_since_it_was_called_not_since_it_had_nothing_to_do(tmp_path: Path) -> None:
    base = save_base(tmp_path)
    _, _, generation = build(settings_for(base), base, Limits())
    loop, work, ended = asyncio.get_running_loop(), Piece(), list[Event]()

    def post(deliver: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(deliver)

    def submit() -> None:
        stepper.submit(Request((5, 6), Sampling(max_tokens=1, seed=0)), ended.append)

    stepper = Stepper(generation, post, work)
    stepper.start()
    try:
        await until(lambda: stepper._idle)
        with stepper._wake:  # so the thread cannot wake meanwhile
            stepper._beat -= 1000  # it has been idle for long
            submit()
            assert stepper.stalled_s() < 500
            stepper._beat -= 1000  # and it has not woken since
            submit()
            assert stepper.stalled_s() > 500
        await until(lambda: len([event for event in ended if isinstance(event, Done)]) == 2)
        await until(lambda: stepper._idle)
        with stepper._wake:
            stepper._beat -= 1000
            work.busy = True
            stepper.wake()
            assert stepper.stalled_s() < 500
        await until(lambda: not work.busy)
    finally:
        assert stepper.stop(20)


async def test_a_defect_of_one_requests_sink_takes_no_events_from_others(tmp_path: Path) -> None:
    """The request itself is cancelled, since nobody gets its answer."""
    base, broken, ended = save_base(tmp_path), list[Event](), list[Event]()
    _, _, generation = build(settings_for(base), base, Limits())

    def breaking(event: Event) -> None:
        broken.append(event)
        raise KeyError("acme/one")

    stepper = Stepper(generation, lambda deliver: deliver())  # at once: otherwise all 60 tokens might come before it
    requests = [Request((5, 6), Sampling(max_tokens=new, seed=0, ignore_eos=True)) for new in (60, 3)]
    stepper.submit_all(requests, [breaking, ended.append])
    stepper.start()
    try:
        await until(lambda: any(isinstance(event, Done) for event in ended))
        await until(lambda: any(isinstance(event, Failed) for event in broken))
        assert sum(len(event.token_ids) for event in ended if isinstance(event, Tokens)) == 3
        assert not stepper.tenants()
    finally:
        assert stepper.stop(20)


async def test_a_defect_that_ends_the_step_thread_is_told_to_all_who_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests both begun and not begun get the error; later ones are refused so that they go to another engine."""

    def break_books(*_: object) -> list[Share]:
        assert scheduler.live  # it has taken in the first
        stepper.submit(Request((7, 8), Sampling(max_tokens=1, seed=0)), ended.append)
        raise KeyError("acme/one")

    def post(deliver: Callable[[], None]) -> None:
        loop.call_soon_threadsafe(deliver)

    base, lost, ended = save_base(tmp_path), threading.Event(), list[Event]()
    loop = asyncio.get_running_loop()
    _, _, generation = build(settings_for(base), base, Limits(), on_lost=lost.set)
    scheduler, stepper = generation.scheduler, Stepper(generation, post)
    monkeypatch.setattr(scheduler, "next_step", break_books)
    stepper.start()
    stepper.submit(Request((5, 6), Sampling(max_tokens=1, seed=0)), ended.append)
    await until(lambda: len(ended) == 2)
    assert all(isinstance(event, Failed) and isinstance(event.error, EngineUnavailable) for event in ended)
    assert lost.is_set()
    with pytest.raises(Draining):
        stepper.submit(Request((5, 6), Sampling(max_tokens=1, seed=0)), ended.append)
    assert stepper.stop(20)

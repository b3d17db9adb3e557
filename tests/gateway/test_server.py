"""The gateway as a program: health, reflection, metrics, logs, and a graceful end."""

import asyncio
import json
import math
import os
import re
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from mint_contracts import errors
from mint_contracts.catalog_pb2 import RegisterRequest
from mint_contracts.map_reader import MapReader
from mint_contracts.settings import REDIS_URL
from mint_gateway.catalog.catalogs import Catalogs
from mint_gateway.catalog.servicer import STREAMS
from mint_gateway.client import Client, question
from mint_gateway.process import run
from mint_gateway.server import Limits
from tests.gateway.scene import BASE, LIMIT_S, Scene
from tests.importing import ends_while_it_imports
from tests.redis_process import RedisProcess, free_port
from tests.waiting import PATIENCE_S, until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(target: str, service: str = "") -> int:
    async with grpc.aio.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=LIMIT_S, wait_for_ready=True)
        return int(reply.status)


async def told(channel: grpc.aio.Channel) -> AsyncIterator[int]:
    """Yield the program's health now and each time that it changes."""
    async for reply in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=LIMIT_S):
        yield int(reply.status)


async def test_health_serves_once_the_map_was_read_and_stays_so_when_redis_dies(
    fragile: Scene, own_redis: RedisProcess
) -> None:
    own_redis.kill()
    await fragile.open()
    assert await health(fragile.target) == NOT_SERVING
    own_redis.start()
    await asyncio.wait_for(fragile.gateway.mirror.first_read.wait(), 60)
    for service in ("", "mint.v1.Sampler", "mint.v1.Placement"):
        assert await health(fragile.target, service) == SERVING
    own_redis.kill()
    await until(lambda: fragile.gateway.mirror.away)
    assert await health(fragile.target) == SERVING


async def test_clients_without_keys_watch_its_health_within_bounds(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each watch takes memory for as long as its client likes."""
    monkeypatch.setattr("mint_gateway.health.MOST_WATCHES", 3)
    await scene.open()
    async with grpc.aio.insecure_channel(scene.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def watch(name: str = "") -> Any:
            call = stub.Watch(health_pb2.HealthCheckRequest(service=name), timeout=LIMIT_S)
            await call.read()
            return call

        with pytest.raises(grpc.aio.AioRpcError, match="service: is a name of more than 256 characters"):
            await watch("a" * 300)
        watches = [await watch(), await watch("mint.v1.Sampler")]
        with pytest.raises(grpc.aio.AioRpcError, match="gateway: has as many watches of its health") as refused:
            await watch()
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        watches[0].cancel()

        async def let_in() -> bool:
            try:
                return bool(await watch())
            except grpc.aio.AioRpcError:
                return False

        await until(let_in)


async def test_an_empty_map_may_be_a_lost_one_until_an_operator_has_written_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that starts beside a new Redis must not tell clients that there are no bases."""
    monkeypatch.setattr("mint_gateway.mirror.EMPTY_S", math.inf)
    await scene.open()
    await until(lambda: scene.gateway.mirror.age_s() < math.inf)
    assert await health(scene.target) == NOT_SERVING
    with pytest.raises(errors.MapUnavailable):
        await scene.client.answer(question("Ahoy?", base_model=BASE))
    await scene.writer.note_leading()
    await asyncio.wait_for(scene.gateway.mirror.first_read.wait(), 60)
    with pytest.raises(errors.BaseModelNotFound):
        await scene.client.answer(question("Ahoy?", base_model=BASE))


async def test_a_stream_that_falls_silent_keeps_no_others_from_registering(scene: Scene) -> None:
    await scene.open(Limits(silence_s=0.2, farewell_s=0.0))

    async def silent() -> AsyncIterator[RegisterRequest]:
        await asyncio.Event().wait()
        yield RegisterRequest()

    outcomes = await asyncio.gather(
        *[scene.client.register(silent()) for _ in range(STREAMS)], return_exceptions=True
    )
    assert {str(each) for each in outcomes} == {
        "stream: has sent nothing for 0.2 s; send it all again, since registering an entry twice does no harm"
    }
    with pytest.raises(errors.InvalidRequest, match="stream: has sent nothing"):  # not one that says to retry later
        await scene.client.register(silent())


async def test_as_many_calls_as_are_answered_at_once_are_bounded_and_others_told_when_to_come_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on, has_wave = asyncio.Event(), asyncio.Event(), MapReader.has_wave

    async def slow(reader: MapReader, base: str, wave: str) -> bool | None:
        reached.set()
        await asyncio.wait_for(go_on.wait(), PATIENCE_S)
        return await has_wave(reader, base, wave)

    monkeypatch.setattr(MapReader, "has_wave", slow)
    await scene.base()
    await scene.begin(limits=Limits(calls=1, farewell_s=0.0))
    client = scene.client
    under_way = asyncio.create_task(client.explain_wave("demo/wave"))
    await asyncio.wait_for(reached.wait(), 60)
    others: list[Awaitable[object]] = [client.explain(""), client.explain_wave("demo/wave"), client.placements()]
    others += [client.catalog_page(), client.resolve("demo/pirate"), client.retire(["demo/pirate"]), client.waves()]
    for refusal in await asyncio.gather(*others, return_exceptions=True):
        assert isinstance(refusal, errors.Overloaded)
        assert str(refusal) == "gateway: 1 calls are in flight, its limit; retry later"
        assert refusal.retry_after_s == 1.0
    async with aiohttp.ClientSession() as session:
        for path in ("/v1/models", "/v1/models/demo/pirate"):
            async with session.get(scene.url + path) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (429, "1")
    go_on.set()
    with pytest.raises(errors.NotFound):
        await under_way
    assert not (await client.placements())


async def test_reflection_lists_the_services(scene: Scene) -> None:
    await scene.open()

    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async with grpc.aio.insecure_channel(scene.target) as channel:
        replies = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask())
        names = [service.name async for reply in replies for service in reply.list_services_response.service]
    assert {"mint.v1.Sampler", "mint.v1.Placement", "grpc.health.v1.Health"} <= set(names)


async def test_each_request_is_one_log_line_that_tells_what_became_of_it(scene: Scene) -> None:
    engine = await scene.with_engine()
    with capture_logs() as logs:
        await scene.client.answer(question("Ahoy?"))
        request = question("Ahoy?", adapter="demo/nobody")
        request.request_id = "mine"
        with pytest.raises(errors.AdapterNotFound):
            await scene.client.answer(request)
        await until(lambda: len([line for line in logs if line["event"] == "request"]) == 2)
    good, bad = (line for line in logs if line["event"] == "request")
    assert (good["base_model"], good["adapter"], good["engine"], good["code"]) == (BASE, "", "e-0", "OK")
    assert good["first_token_seconds"] <= good["seconds"]
    assert good["request_id"] == engine.seen[0].request_id
    assert (bad["request_id"], bad["adapter"], bad["code"]) == ("mine", "demo/nobody", "NOT_FOUND")
    assert "AdapterNotFound" in bad["error"]


async def test_names_sent_by_clients_are_truncated_in_logs(scene: Scene) -> None:
    await scene.base()
    await scene.begin()
    with capture_logs() as logs:
        with pytest.raises(errors.InvalidRequest):
            await scene.client.answer(question("Ahoy?", adapter="a" * 1_000_000))
        with pytest.raises(errors.BaseModelNotFound):
            await scene.client.answer(question("Ahoy?", base_model="a/" + "b" * 1_000_000))
        await until(lambda: len([line for line in logs if line["event"] == "request"]) == 2)
    lines = [line for line in logs if line["event"] == "request"]
    assert [line["adapter"][:9] + line["base_model"][:9] for line in lines] == ["aaaaaaaaa", "a/bbbbbbb"]
    assert all(len(str(line)) < 3000 for line in lines)


async def test_requests_are_counted_by_code_and_timed(scene: Scene) -> None:
    await scene.with_engine()
    await scene.client.answer(question("Ahoy?"))
    value = scene.gateway.metrics.registry.get_sample_value
    await until(lambda: value("mint_gateway_requests_total", {"code": "OK", "client": ""}) == 1)
    assert value("mint_gateway_first_token_seconds_count") == 1
    assert value("mint_gateway_in_flight") == 0

    def young() -> bool:
        age = value("mint_gateway_map_age_seconds")
        return age is not None and age < 5

    await until(young)


async def test_an_overlong_request_id_is_refused(scene: Scene) -> None:
    await scene.open()
    request = question("Ahoy?")
    request.request_id = "x" * 1000
    with pytest.raises(errors.InvalidRequest, match="request_id"):
        await scene.client.answer(request)


async def test_the_program_serves_and_on_sigterm_finishes_what_it_began(scene: Scene) -> None:
    await scene.base()
    engine = await scene.engine("e-0")
    engine.hold_before = asyncio.Event()
    metrics_port, redis_options = free_port(), scene.redis.connection_pool.connection_kwargs
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "mint_gateway.main", "--port", "0", "--http-port", "0", "--metrics-port", str(metrics_port)),
        *("--drain-seconds", "600"),
        env=os.environ | {REDIS_URL: f"redis://127.0.0.1:{redis_options['port']}/0"},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    try:
        port = json.loads(await asyncio.wait_for(process.stderr.readline(), 60))["port"]
        followed = json.loads(await asyncio.wait_for(process.stderr.readline(), 60))
        assert followed["event"] == "following the placement map"
        async with Client(f"127.0.0.1:{port}") as client, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            states = told(channel)
            while await anext(states) != SERVING:
                pass
            asking = asyncio.create_task(client.answer(question("Ahoy?", base_model=BASE)))
            await asyncio.wait_for(engine.started.wait(), 60)
            scraped = await asyncio.to_thread(_scrape, metrics_port)
            assert re.search(r"^mint_gateway_in_flight 1\.0$", scraped, re.MULTILINE)
            process.send_signal(signal.SIGTERM)
            line = json.loads(await asyncio.wait_for(process.stderr.readline(), 60))
            assert (line["event"], line["in_flight"], line["grace_s"]) == ("gateway drains", 1, 600)
            assert await anext(states) == NOT_SERVING
            engine.hold_before.set()
            assert (await asyncio.wait_for(asking, 60)).text == "Hello there."
        assert await asyncio.wait_for(process.wait(), 60) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_program_ends_by_the_defect_that_ended_the_keeping_of_catalogs(
    redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Catalogs) -> None:
        raise ArithmeticError("a defect")

    monkeypatch.setattr(Catalogs, "run", broken)
    monkeypatch.setenv(REDIS_URL, redis_server)
    with pytest.raises(ArithmeticError, match="a defect"):
        await asyncio.wait_for(run(0, 0, free_port()), 60)


async def test_told_to_end_the_program_does_while_it_still_imports(tmp_path: Path) -> None:
    assert await ends_while_it_imports("mint_gateway.main", "grpc", tmp_path) == 0


def _scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
        return str(reply.read().decode())

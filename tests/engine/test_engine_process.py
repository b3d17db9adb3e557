"""The `mint-engine` program as a pod runs it: a real process, a real Redis, real gRPC."""

import asyncio
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import msgspec
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from transformers import Qwen2Config

from mint_contracts import sampling_pb2, sampling_pb2_grpc, settings
from mint_contracts.map_reader import MapReader
from mint_contracts.map_reporter import MapReporter
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import Assignment, EngineView, MapChange, Tier
from mint_contracts.source import Source, child
from tests.engine.families import SIZES, make_model
from tests.engine.ggufs import save
from tests.engine.pods import BASE, pod, view
from tests.engine.running import save_adapter, save_base
from tests.redis_process import RedisProcess, patient
from tests.waiting import PATIENCE_S, until

SLOW, HELD = "importing", "held"
LONG = 100  # tokens: several times those that an engine generates before it is held
HOLDING = f"""
import signal

def hold_steps(*_):
    import pathlib
    import threading
    from mint_engine.scheduling.generation import Generation
    from mint_engine.serve import EngineServer

    step, drain, left, draining = Generation.step, EngineServer.drain, [9], threading.Event()

    def held(generation):
        left[0] -= 1
        assert left[0] >= 0 or draining.wait(60)
        return step(generation)

    async def drained(server, timeout_s):
        draining.set()
        return await drain(server, timeout_s)

    Generation.step, EngineServer.drain = held, drained
    pathlib.Path({HELD!r}).touch()

signal.signal(signal.SIGUSR1, hold_steps)
"""
FRAIL = """
import signal

def lose_device(*_):
    from mint_engine.model.lean import Lean
    from mint_engine.residency.slot_rows import SlotRows

    def refuse(*_):
        raise RuntimeError("an illegal memory access was encountered")

    Lean.run = SlotRows.load = SlotRows.clear = refuse

signal.signal(signal.SIGUSR1, lose_device)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base/ and store/acme/{one,two}."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "base").mkdir()
    base = save_base(folder / "base")
    save_adapter(base, folder / "store" / "acme" / "one", rank=4)
    save_adapter(base, folder / "store" / "acme" / "two", rank=8)
    return folder


def begin(channel: grpc.aio.Channel, adapter: str, tokens: int) -> AsyncIterator[sampling_pb2.GenerateEvent]:
    """Start one greedy completion; return its events."""
    sampling = sampling_pb2.SamplingParams(max_tokens=tokens, ignore_eos=True)
    request = sampling_pb2.GenerateRequest(adapter=adapter, text="the quick brown fox", sampling=sampling)
    return aiter(sampling_pb2_grpc.SamplerStub(channel).Generate(request, timeout=60))


async def ask(channel: grpc.aio.Channel, adapter: str) -> tuple[str, list[int]]:
    """The (revision, tokens) of a short completion."""
    revision = ""
    found: list[int] = []
    async for event in begin(channel, adapter, 8):
        if event.HasField("started"):
            revision = event.started.revision
        found += event.chunk.token_ids
    return revision, found


async def fails(channel: grpc.aio.Channel, adapter: str) -> bool:
    """Whether a request fails."""
    try:
        await ask(channel, adapter)
    except grpc.aio.AioRpcError:
        return True
    return False


def scraped(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return bytes(answer.read())


async def test_an_engine_serves_follows_the_map_and_drains(
    files: Path, redis_process: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLDING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    redis = patient(redis_process.url)
    await redis.flushall()
    reader, store = MapReader(redis), Source(f"file://{files}/store")
    with pod(tmp_path, redis_process, Source(f"file://{files}/base"), store) as engine:

        async def ready() -> EngineView | None:
            found = await view(reader, engine.name)
            return found if found and found.record and found.record.ready else None

        record = (await until(ready)).record
        assert record is not None
        assert (record.slots_used, record.slots_total, record.address) == (0, 4, f"127.0.0.1:{engine.port}")

        async with grpc.aio.insecure_channel(f"127.0.0.1:{engine.port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert b"mint_engine_requests" in await asyncio.to_thread(scraped, engine.metrics_port)
            [settled] = [line for line in engine.lines() if line["event"] == "settled"]
            assert settled["objects"] > 100_000, "what libraries have made is gone through again and again"

            bare, (revision, adapted) = await ask(channel, ""), await ask(channel, "acme/one")
            assert (bare[0], revision[:7]) == ("", "sha256:")
            assert len(bare[1]) == len(adapted) == 8

            wanted = Assignment("acme/two", child(store, "acme/two"), Tier.DEVICE, ("default/wave",))
            change = MapChange(set_assigned={engine.name: (wanted,)})
            version = await MapWriter(redis, epoch=1).apply(BASE, change)

            async def held() -> EngineView | None:
                """Copies are reported as they arrive, the record with the next heartbeat."""
                found = await view(reader, engine.name)
                if found is None or found.record is None or "acme/two" not in found.held:
                    return None
                told = (found.held["acme/two"].tier, found.record.slots_used, found.record.map_version)
                return found if told == (Tier.DEVICE, 2, version) else None

            assert (await until(held)).held["acme/one"].revision == revision

            engine.process.send_signal(signal.SIGUSR1)  # from now on steps are held until it drains
            await until((tmp_path / HELD).exists)
            events, taken = begin(channel, "acme/two", LONG), list[int]()
            while not taken:
                taken += (await anext(events)).chunk.token_ids
            engine.process.send_signal(signal.SIGTERM)
            taken += [token async for event in events for token in event.chunk.token_ids]
            assert len(taken) == LONG, "a request that was taken is finished"
        assert await engine.ended() == 0
        gone = await view(reader, engine.name)
        assert gone is not None
        assert gone.record is None, "the heartbeat ends with the process"
        draining, drained = (line for line in engine.lines() if line["event"] in {"draining", "drained"})
        assert (draining["running"], drained["finished"]) == (1, True), "it was told to end amid that request"
        assert all(line["engine"] == engine.name for line in engine.lines())
    await redis.aclose()


async def test_a_base_that_does_not_exist_is_told_not_crashed_over(
    redis_process: RedisProcess, tmp_path: Path
) -> None:
    redis = patient(redis_process.url)
    await redis.flushall()
    reader = MapReader(redis)
    with pod(tmp_path, redis_process, Source(f"file://{tmp_path}/nothing"), name="tiny-1") as engine:

        async def failed() -> EngineView | None:
            found = await view(reader, engine.name)
            return found if found and found.record and found.record.failure else None

        record = (await until(failed)).record
        assert record is not None
        assert record.failure is not None
        assert (record.ready, record.failure.reason, record.failure.terminal) == (False, "SourceNotFound", True)
        assert "nothing" in record.failure.message
        async with grpc.aio.insecure_channel(f"127.0.0.1:{engine.port}") as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert engine.process.poll() is None

        await MapReporter(redis, BASE, engine.name).report(
            msgspec.structs.replace(record, incarnation=record.incarnation + 10**12), (), (), full=True
        )
        assert await engine.ended() == 3, "a newer start of the same engine takes over"
        assert engine.lines()[-1]["event"] == "replaced"
    await redis.aclose()


async def test_while_it_reads_a_gguf_file_it_logs_as_ever(redis_process: RedisProcess, tmp_path: Path) -> None:
    """One event per line, and no progress bars."""
    file = tmp_path / "base" / "tiny.gguf"
    file.parent.mkdir()
    save(file, make_model(Qwen2Config(**SIZES | {"hidden_size": 64})), "qwen2")
    with pod(tmp_path, redis_process, Source(f"file://{file.parent}"), context_length=64) as engine:
        await until(lambda: "base_loaded" in {line["event"] for line in engine.lines()}, timeout_s=300)


@pytest.mark.parametrize("asked", ["", "acme/one"], ids=["by a step", "by a load"])
async def test_an_engine_whose_device_computes_nothing_any_more_ends_so_as_to_start_anew(
    asked: str, files: Path, redis_process: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redis = patient(redis_process.url)
    await redis.flushall()
    reader = MapReader(redis)
    (tmp_path / "sitecustomize.py").write_text(FRAIL)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pod(tmp_path, redis_process, Source(f"file://{files}/base"), Source(f"file://{files}/store")) as engine:

        async def ready() -> bool:
            found = await view(reader, engine.name)
            return bool(found and found.record and found.record.ready)

        await until(ready)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{engine.port}") as channel:
            assert len((await ask(channel, ""))[1]) == 8
            engine.process.send_signal(signal.SIGUSR1)
            await until(lambda: fails(channel, asked))
        assert await engine.ended() == 1
        last = await view(reader, engine.name)
        assert last is None or last.record is None or not last.record.ready
        assert "engine_lost" in {line["event"] for line in engine.lines()}
    await redis.aclose()


async def test_told_to_end_it_does_while_it_still_imports(
    redis_process: RedisProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk never answers. A pod group may be recreated while its restarted containers are importing."""
    (tmp_path / "torch.py").write_text(f"import pathlib, time; pathlib.Path({SLOW!r}).touch(); time.sleep(3600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pod(tmp_path, redis_process, Source(f"file://{tmp_path}/base")) as engine:
        await until((tmp_path / SLOW).exists)
        engine.process.terminate()
        assert await engine.ended() == 0
        assert engine.lines() == []


def test_a_missing_setting_is_said_in_one_line() -> None:
    environment = {key: value for key, value in os.environ.items() if key != settings.ENGINE_SETTINGS}
    command = [sys.executable, "-m", "mint_engine.main"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        f"mint-engine: {settings.ENGINE_SETTINGS} is not set; the operator sets it on an engine's pod"
    ]

"""A training store that accepts connections but never answers delays training only, and nobody else."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import msgspec
import pytest

from mint_contracts import sampling_pb2, sampling_pb2_grpc
from mint_contracts.source import Source
from tests.engine import stores
from tests.engine.training.training_engine import assignment, train, training
from tests.relay import relaying
from tests.waiting import until

FEW = 2  # threads in asyncio's default pool, as on a machine with few cores
SOON_S = 25.0  # shorter than the timeout of a silent store


async def test_requests_are_answered_while_more_policies_than_there_are_threads_wait_for_their_store(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(FEW))
    with relaying("127.0.0.1:1") as relay, stores.credentials(monkeypatch, f"http://127.0.0.1:{relay.port}"):
        relay.fault = "silent"
        async with training(base, tmp_path, train()) as scene:
            scene.wave = msgspec.structs.replace(scene.wave, store=Source("s3://shelf/runs"))
            scene.want(*[assignment(f"acme/{number}") for number in range(2 * FEW)])
            await until(lambda: relay.taken >= FEW)
            asked = sampling_pb2.GenerateRequest(text="the quick", sampling=sampling_pb2.SamplingParams(max_tokens=2))
            async with grpc.aio.insecure_channel(f"127.0.0.1:{scene.server.port}") as channel:
                answer = sampling_pb2_grpc.SamplerStub(channel).Generate(asked, timeout=SOON_S)
                events = [event async for event in answer]
            assert events[-1].HasField("finished")
            relay.close()

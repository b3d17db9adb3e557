"""A real gateway process over a Redis, for a base that has a catalog."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from redis.asyncio import Redis

from mint_contracts.map_writer import MapWriter
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.settings import REDIS_URL
from mint_contracts.source import Source
from tests.bench.places import LOGS
from tests.redis_process import free_port

BASE = "scale/base"
START_S = 60.0
END_S = 30.0


async def declare(redis: Redis, manifests: Path) -> None:
    """Write the base's record as the operator would."""
    record = BaseRecord(base_model=BASE, catalog=Source(f"file://{manifests}"))
    await MapWriter(redis, epoch=1).apply(BASE, MapChange(base=record))


@contextmanager
def gateway(redis_url: str) -> Iterator[str]:
    """Run a gateway, and yield its host:port once it answers."""
    port, metrics = free_port(), free_port()
    LOGS.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "mint_gateway.main",
        "--port",
        str(port),
        "--http-port",
        "0",
        "--metrics-port",
        str(metrics),
    ]
    with (LOGS / "gateway.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, REDIS_URL: redis_url})
    target = f"127.0.0.1:{port}"
    try:
        with grpc.insecure_channel(target) as channel:
            grpc.channel_ready_future(channel).result(START_S)
        yield target
    finally:
        process.kill()  # it has no state to save
        process.wait(END_S)

"""Engines as pods run them: separate processes that can be killed."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from mint_contracts import settings
from mint_contracts.map_reader import MapReader
from mint_contracts.records import EngineView
from mint_contracts.settings import EngineSettings
from mint_contracts.source import Source
from tests.engine.parallel.nodes import group_environment
from tests.engine_views import engine_views
from tests.logs import whole_lines
from tests.redis_process import RedisProcess, free_port
from tests.waiting import PATIENCE_S

BASE = "default/tiny"


class Pod:
    """One engine process and what a cluster knows about it."""

    def __init__(
        self, folder: Path, redis_url: str, source: Source, store: Source | None, name: str, **changes: Any
    ) -> None:
        self.name, self.port, self.metrics_port, self.ranks_port = name, free_port(), free_port(), free_port()
        self.log = folder / f"{name}.log"
        told = EngineSettings(
            base_model=BASE, source=source, device="cpu", dtype="float32", context_length=128,
            kv_cache_bytes=1 << 20, max_rank=16, device_slots=4, host_bytes=1 << 20, disk_bytes=1 << 20, store=store,
        )  # fmt: skip
        self.settings = told = msgspec.structs.replace(told, **changes)
        environment = {key: value for key, value in os.environ.items() if key not in {"HOME", "HF_HOME"}}
        if told.nodes > 1:
            environment |= group_environment(0, told.nodes)
        environment |= {
            settings.ENGINE_SETTINGS: msgspec.json.encode(told).decode(),
            settings.ENGINE_NAME: name,
            settings.ENGINE_ADDRESS: f"127.0.0.1:{self.port}",
            settings.REDIS_URL: redis_url,
            settings.CACHE_FOLDER: str(folder / f"{name}-cache"),
        }
        command = [sys.executable, "-m", "mint_engine.main", "--port", str(self.port)]
        command += ["--metrics-port", str(self.metrics_port), "--ranks-port", str(self.ranks_port)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def lines(self) -> list[dict[str, Any]]:
        """What the process has logged so far."""
        return [json.loads(line) for line in whole_lines(self.log)]

    async def ended(self) -> int:
        """Wait until the process ends; return its exit code."""
        return await asyncio.to_thread(self.process.wait, PATIENCE_S)


@contextmanager
def pod(
    folder: Path,
    redis: RedisProcess,
    source: Source,
    store: Source | None = None,
    name: str = "tiny-0",
    **changes: Any,
) -> Iterator[Pod]:
    running = Pod(folder, redis.url, source, store, name, **changes)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait(60)  # a busy machine needs time to free what a process held


async def view(reader: MapReader, name: str) -> EngineView | None:
    """What the map has about an engine; None before the engine's first report."""
    return next((each for each in await engine_views(reader, BASE) if each.engine == name), None)

"""An engine's other nodes: processes started as its worker pods are, on ports of this machine."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mint_contracts import settings as contracts
from mint_contracts.settings import EngineSettings
from mint_engine.parallel.handshake import RanksEndpoint, key_of
from tests.logs import whole_lines
from tests.redis_process import free_port

PASSWORD = "of all pods of a base"


@dataclass(frozen=True)
class Worker:
    """A worker pod's process."""

    process: subprocess.Popen[bytes]
    log: Path

    def lines(self) -> list[dict[str, Any]]:
        """What the process has logged so far."""
        return [json.loads(line) for line in whole_lines(self.log) if line.startswith("{")]

    def has_logged(self, event: str) -> bool:
        return event in {line["event"] for line in self.lines()}


@dataclass(frozen=True)
class Group:
    """The endpoint for the other nodes, and their workers; empty if the engine has one node."""

    endpoint: RanksEndpoint | None
    workers: list[Worker]


def group_environment(node: int, nodes: int) -> dict[str, str]:
    """The environment variables that a LeaderWorkerSet gives a pod."""
    return {
        contracts.LEADER_ADDRESS: "127.0.0.1",
        contracts.WORKER_INDEX: str(node),
        contracts.GROUP_SIZE: str(nodes),
    }


def endpoint_of(settings: EngineSettings, port: int) -> RanksEndpoint:
    return RanksEndpoint(port, key_of(PASSWORD, settings.base_model))


@contextmanager
def worker(
    settings: EngineSettings,
    port: int,
    folder: Path,
    node: int = 1,
    password: str = PASSWORD,
    claims: Path | None = None,
) -> Iterator[Worker]:
    """Run a worker; it is killed at the end of the context if it still runs. `claims` is the folder mounted there."""
    environment = {key: value for key, value in os.environ.items() if key not in {"HOME", "HF_HOME"}}
    environment |= group_environment(node, settings.nodes) | {
        contracts.ENGINE_SETTINGS: msgspec.json.encode(settings).decode(),
        contracts.ENGINE_NAME: f"tiny-0-{node}",
        contracts.REDIS_PASSWORD: password,
        contracts.CACHE_FOLDER: str(folder / f"cache-{node}"),
        contracts.PVC_ROOT: str(claims or folder),
    }
    command, path = [sys.executable, "-m", "mint_engine.main", "--ranks-port", str(port)], folder / f"{node}.log"
    with path.open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield Worker(process, path)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)


@contextmanager
def other_nodes(settings: EngineSettings) -> Iterator[Group]:
    """Run all of an engine's nodes but the leader's, which connect to its endpoint."""
    if settings.nodes == 1:
        yield Group(None, [])
        return
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = [
            stack.enter_context(worker(settings, port, Path(folder), node)) for node in range(1, settings.nodes)
        ]
        yield Group(endpoint_of(settings, port), workers)

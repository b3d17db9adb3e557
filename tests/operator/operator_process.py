"""The operator as a process of its own."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.logs import whole_lines
from tests.operator.stage import Stage
from tests.redis_process import free_port
from tests.waiting import PATIENCE_S


@dataclass
class Process:
    """A running operator and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    port: int
    metrics_port: int

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        lines = [json.loads(line) for line in whole_lines(self.log) if line.startswith("{")]
        return [line for line in lines if line.get("event") == name]

    async def healthy(self, host: str = "127.0.0.1") -> bool:
        """Return whether its liveness probe succeeds, which a thread of its own answers once it has started."""
        return await asyncio.to_thread(answers, f"http://{host}:{self.port}/healthz")

    async def ended(self) -> int:
        """Wait until it has ended, and return its exit code."""
        return await asyncio.to_thread(self.process.wait, PATIENCE_S)


def answers(url: str) -> bool:
    """Return whether the URL answers with status 200."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def running(
    stage: Stage,
    url: str,
    folder: Path,
    name: str,
    *,
    lease: str = "mint-operator",
    kubeconfig: Path | None = None,
    namespaces: Sequence[str] = (),
    pod_ip: str = "10.0.0.1",
    look_s: float | None = None,
    resyncs: bool = True,
) -> Iterator[Process]:
    """Start `mint-operator` over the stage's namespace, or others, whose permissions it checks every `look_s`.

    After as long it forgets a base of one that it may not read, if no engine of it is left.

    It learns what its watch does not report only by resyncs.
    """
    port, metrics_port, log = free_port(), free_port(), folder / f"{name}.log"
    env = os.environ | {
        "KUBECONFIG": str(kubeconfig or stage.server.kubeconfig),
        "MINT_NAMESPACE": stage.namespace,
        "MINT_LEASE": lease,
        "MINT_WATCH_NAMESPACES": ",".join(namespaces or [stage.namespace]),
        "POD_NAME": name,
        "POD_IP": pod_ip,
        "MINT_ENGINE_IMAGE": "mint.dev/host:dev",
        "MINT_REDIS_URL": url,
        "MINT_LIVENESS_PORT": str(port),
        "MINT_METRICS_PORT": str(metrics_port),
    }
    command = [sys.executable, "-m", "mint_operator.main"]
    if look_s is not None:
        begin = f"from mint_operator import leftovers, main, namespaces; namespaces.LOOK_S = {look_s}; "
        begin += f"leftovers.LOOK_S = leftovers.GONE_S = {look_s}; main.main()"
        command = [sys.executable, "-c", begin]
    if not resyncs:
        begin = "from mint_operator import main, process; process.Dirt.__init__.__defaults__ = (1e9,); main.main()"
        command = [sys.executable, "-c", begin]
    with log.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=out, env=env) as process:
        try:
            yield Process(process, log, port, metrics_port)
        finally:
            process.kill()
            process.wait(60)

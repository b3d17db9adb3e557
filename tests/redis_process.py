"""A real redis-server for one test, which can be killed and started again."""

import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from mint_contracts.functions import connect
from tests.waiting import until

PORTS = range(16_000, 30_000)

_claims = list[socket.socket]()


def free_port() -> int:
    """Return a TCP port of loopback that nobody listens on, reserved for this process for as long as it runs.

    It lies outside the system's range of ephemeral ports, since the program that is to listen on it may take seconds
    to start. An abstract Unix socket, which ends with this process, tells other test processes that it is taken.
    """
    for port in random.Random().sample(PORTS, k=1000):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0mint-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return port
    raise AssertionError("no port of loopback is free")


def patient(url: str) -> Redis:
    """Return a client that tolerates a machine stalled for seconds; it still notices at once that Redis has ended."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mint_contracts.functions.CALL_TIMEOUT_S", 60.0)
        return connect(url)


@asynccontextmanager
async def full_memory(redis: Redis) -> AsyncIterator[None]:
    """Let Redis exceed its memory limit, so that it refuses all commands that could make it grow."""
    await redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        await redis.config_set("maxmemory", 0)


@asynccontextmanager
async def without_replicas(redis: Redis) -> AsyncIterator[None]:
    """Let Redis lack a replica that it requires, so that it refuses all writes."""
    await redis.config_set("min-replicas-to-write", 1)
    try:
        yield
    finally:
        await redis.config_set("min-replicas-to-write", 0)


async def fill_disk(redis: Redis, folder: Path) -> None:
    """Let Redis fail to write its files in `folder`, as on a full disk, so that it refuses all writes, and PING."""
    await redis.config_set("save", "3600 1000000")
    shutil.rmtree(folder)
    await redis.bgsave()

    async def failed() -> bool:
        return bool((await redis.info("persistence"))["rdb_last_bgsave_status"] == "err")

    await until(failed)


class RedisProcess:
    """A redis-server, ready for connections when the constructor returns. Use as a context manager."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        program = shutil.which("redis-server")
        assert program, "redis-server is missing; `make tools` installs it"
        listen = () if "--port" in options else ("--port", str(self.port))
        self._command = [program, *listen, "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *options]
        self._process: subprocess.Popen[str] | None = None
        self.start()

    @property
    def url(self) -> str:
        """The URL for clients without TLS."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, again on the same port; it is empty unless `options` make it persist."""
        assert self._process is None
        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "Ready to accept connections" in line:
                break
        else:
            process.wait(60)
            raise AssertionError("redis-server did not start:\n" + "".join(seen))
        # What it logs later must not fill the pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        self._process = process

    def kill(self) -> None:
        """Kill it, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Let it accept connections and answer nothing, as on a node that is cut off."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> "RedisProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

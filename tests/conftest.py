"""What every test may use: a real Redis and a real Kubernetes API server, private to the test run."""

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from redis.asyncio import Redis

from mint_contracts.functions import connect
from tests.apiserver import ApiServer, serve


def free_port() -> int:
    """A TCP port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a redis-server of this run's own."""
    folder: Path = tmp_path_factory.mktemp("redis")
    program = shutil.which("redis-server")
    assert program, "redis-server is missing; `make tools` installs it"
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        url = f"redis://127.0.0.1:{port}/0"
        client = redis.Redis.from_url(url)
        for _ in range(200):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                process.poll()
                assert process.returncode is None, (folder / "log").read_text()
                asyncio.run(asyncio.sleep(0.02))
        client.ping()
        client.close()
        yield url
        process.terminate()
        process.wait(10)


@pytest.fixture
async def redis_client(redis_server: str) -> AsyncIterator[Redis]:
    """An empty Redis database."""
    client = connect(redis_server)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of this run's own, with MinT's CRDs; a test keeps to a namespace of its own."""
    with serve(tmp_path_factory.mktemp("apiserver")) as server:
        yield server

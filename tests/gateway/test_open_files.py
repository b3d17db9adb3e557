"""A gateway has as many open files as it may: containers often begin with 1,024, and each connection is one."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mint_contracts.settings import REDIS_URL
from tests.redis_process import free_port
from tests.waiting import until

FEW = 256


@contextmanager
def starting() -> Iterator[int]:
    """Start a gateway without Redis; yield its process' ID."""
    ports = ("--port", "0", "--http-port", "0", "--metrics-port", str(free_port()))
    command = [sys.executable, "-m", "mint_gateway.main", *ports]
    environment = {**os.environ, REDIS_URL: f"redis://127.0.0.1:{free_port()}/0"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as gateway:
        try:
            yield gateway.pid
        finally:
            gateway.kill()


async def test_a_gateway_raises_its_limit_of_open_files() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with starting() as process:
        resource.prlimit(process, resource.RLIMIT_NOFILE, (FEW, most))
        await until(lambda: resource.prlimit(process, resource.RLIMIT_NOFILE) == (most, most))

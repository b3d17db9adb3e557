"""The chart's Redis, started by its own command: it requires the password, and no process list shows it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import AuthenticationError, Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.chart.rendering import DEFAULTS, container, of_kind, render, workloads
from tests.redis_process import free_port

ONCE = Retry(NoBackoff(), 0)
PASSWORD = r"""a "quoted" 'word' \ with $(echo more) and spaces """


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def started(tmp_path: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """Run the container's command with its files in `tmp_path`, ready for connections."""
    objects = render(DEFAULTS)
    own = container(workloads(objects)["mint-redis"])
    config = of_kind(objects, "ConfigMap")["mint-redis"]["data"]["redis.conf"]
    config = config.replace("/data", str(tmp_path)).replace("6379", str(port))
    # Redis soon overwrites its arguments with a title; keep them as an early look would see them.
    (tmp_path / "redis.conf").write_text(f"{config}\nset-proc-title no\n")
    command = [word.replace("/etc/redis", str(tmp_path)) for word in own["command"]]
    command = [word.replace("$(REDISCLI_AUTH)", PASSWORD) for word in command]  # as the kubelet would
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path), "REDISCLI_AUTH": PASSWORD}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Ready to accept connections" in line:
                break
        else:
            raise AssertionError("".join(lines))
        yield process
        process.terminate()
        process.communicate(timeout=60)
        assert process.returncode == 0, "SIGTERM must reach Redis itself"


@pytest.mark.usefixtures("started")
def test_only_clients_with_the_password_are_let_in(port: int) -> None:
    with Redis(port=port, password=PASSWORD) as knows:
        assert knows.set("key", "value")
        assert knows.function_list() == []
    for wrong in (None, PASSWORD.strip()):
        with Redis(port=port, password=wrong, retry=ONCE) as stranger, pytest.raises(AuthenticationError):
            stranger.get("key")


def test_the_password_is_in_no_argument_and_in_no_file(started: subprocess.Popen[str], tmp_path: Path) -> None:
    words = Path(f"/proc/{started.pid}/cmdline").read_bytes()
    assert words.startswith(b"redis-server")
    assert b"quoted" not in words
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(b"quoted" in path.read_bytes() for path in files)

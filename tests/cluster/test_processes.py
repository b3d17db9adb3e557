"""Processes are identified by pid and start time, and restarted with growing pauses."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster.native.processes import child_of, detach, end, identify
from e2e.cluster.native.supervise import BACKOFF_S, pause
from tests.waiting import block_until


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_running_process_is_alive_until_it_is_ended(sleeper: subprocess.Popen[bytes]) -> None:
    process = identify(sleeper.pid)
    assert process is not None
    assert process.alive
    end(process)
    assert not process.alive


def test_another_process_with_the_same_pid_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    process = identify(sleeper.pid)
    assert process is not None
    earlier = replace(process, started=process.started - 1)
    assert not earlier.alive
    end(earlier)
    assert process.alive


def test_a_child_is_found_by_its_parent() -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        expected = int(parent.stdout.readline())
        process = identify(parent.pid)
        assert process is not None
        child = child_of(process)
        assert child is not None
        assert child.pid == expected
        end(child)


def test_pauses_grow_to_a_limit_and_are_spread() -> None:
    shortest, longest = BACKOFF_S
    steady = [pause(failures, 0.5) for failures in range(1, 12)]
    assert steady[0] == shortest
    assert steady == sorted(steady)
    assert steady[-1] == longest
    assert pause(1, 0.0) < pause(1, 1.0)


def test_a_detached_program_has_its_log_and_none_of_the_files_that_its_caller_was_given(tmp_path: Path) -> None:
    lock, log = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR), tmp_path / "log"
    os.set_inheritable(lock, True)  # as a shell leaves it in `exec 9>lock; flock 9; make demo`
    code = "import time; print('started', flush=True); time.sleep(60)"
    pid = detach([sys.executable, "-c", code], log)
    os.close(lock)
    process = identify(pid)
    assert process is not None
    try:
        block_until(lambda: log.read_text() == "started\n")  # and has closed the files that it was loaded from
        opened = {each.name: os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
        assert [opened[each] for each in "012"] == [os.devnull, str(log), str(log)]
        assert str(tmp_path / "lock") not in opened.values()
        assert os.getsid(pid) == pid
    finally:
        end(process)

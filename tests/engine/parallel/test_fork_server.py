"""Ranks are forked from one process, and each is independent from then on."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Queue

import pytest

from mint_engine.parallel.files import Files, make_files
from mint_engine.parallel.fork_client import ForkClient
from mint_engine.parallel.rank import Rank
from tests.engine.parallel.processes import followers
from tests.waiting import PATIENCE_S, join, until

HEAVY = ("torch", "transformers", "numpy")


class Group:
    """Ranks that wait to be told what to load, and the reports of their ends."""

    def __init__(self, files: Files) -> None:
        self.ended = Queue[tuple[str, int]]()
        self._files = files
        self.ranks: list[Rank] = []

    async def start(self, number: int) -> int:
        """Start another rank; return its process id."""
        before, found = set(followers()), set[int]()

        def seen() -> bool:
            found.update(set(followers()) - before)
            return bool(found)

        self.ranks.append(Rank(number, self._files, lambda name, status: self.ended.put((name, status))))
        await until(seen)
        (pid,) = found
        return pid


@pytest.fixture
def group() -> Iterator[Group]:
    files = make_files()
    found = Group(files)
    yield found
    for rank in found.ranks:
        rank.finish(0.0)
    files.close()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def open_files(pid: int) -> list[str]:
    """What a process has open; it may close some of it meanwhile."""
    found = list[str]()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(os.readlink(each).partition(":")[0])
    return found


def test_the_program_can_start_it_before_it_imports_anything_heavy() -> None:
    imports = "import sys, mint_engine.main, mint_engine.environment, mint_engine.parallel.fork_client"
    code = f"{imports}; print(sorted({{*sys.modules}} & {{*{HEAVY}}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert done.stdout == "[]\n"


async def test_one_process_imports_for_all(group: Group) -> None:
    first, second = [await group.start(number) for number in (1, 2)]
    assert parent(first) == parent(second) != os.getpid()


async def test_a_rank_ends_when_its_engine_hangs_up_whatever_was_forked_after_it(group: Group) -> None:
    """No rank holds descriptors that belong to another."""
    _, second = [await group.start(number) for number in (1, 2)]
    group.ranks[0].hang_up()
    assert group.ended.get(timeout=60) == ("rank 1", 0)
    await until(lambda: second in followers())
    await until(lambda: open_files(second).count("socket") == 2 and "anon_inode" not in open_files(second))


async def test_one_that_takes_too_long_to_end_is_killed_alone(group: Group) -> None:
    first, second = [await group.start(number) for number in (1, 2)]
    os.kill(first, signal.SIGSTOP)
    group.ranks[0].finish(0.0)
    assert group.ended.get(timeout=60) == ("rank 1", -signal.SIGKILL)
    await until(lambda: second in followers())


async def test_all_end_with_the_process_that_they_were_forked_from_and_later_ones_have_another(group: Group) -> None:
    first, second = [await group.start(number) for number in (1, 2)]
    lost = parent(first)
    os.kill(lost, signal.SIGKILL)
    assert sorted(group.ended.get(timeout=60) for _ in range(2)) == [(f"rank {n}", -signal.SIGKILL) for n in (1, 2)]
    await until(lambda: not {first, second} & set(followers()))
    assert parent(await group.start(3)) not in {lost, os.getpid()}


def test_a_process_that_cannot_start_is_reported_with_its_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example if a library is missing: it must not look as if memory had run out."""
    program, asked = tmp_path / "program", tmp_path / "asked"
    program.write_text(f"#!/bin/sh\nuntil test -e {asked}; do sleep 0.01; done\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    forked = ForkClient().fork((0, 0, 0, 0))
    waiting = threading.Thread(target=forked.wait)
    waiting.start()
    asked.touch()
    join(waiting)
    assert forked.status == 3

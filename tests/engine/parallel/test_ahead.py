"""Ranks start before what an engine imports, and whoever is to lead them gets them as they are then."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from queue import Queue

import pytest

from mint_engine.parallel.ahead import Ahead, Started, start_ranks
from tests.engine.parallel.processes import followers
from tests.waiting import until

HEAVY = ("torch", "transformers", "numpy")


@pytest.fixture
def closed() -> Iterator[list[Started]]:
    """What is put in here ends with the test."""
    found: list[Started] = []
    yield found
    for each in found:
        for rank in each.ranks:
            rank.finish(0.0)
        each.files.close()


def test_the_program_starts_them_before_it_imports_anything_heavy() -> None:
    code = f"import sys, mint_engine.main; print(sorted({{*sys.modules}} & {{*{HEAVY}}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


async def test_those_started_ahead_are_mustered_once(closed: list[Started]) -> None:
    before = followers()
    ahead = Ahead(3)
    await until(lambda: len(followers()) == len(before) + 2)
    closed.append(ahead(3))
    assert [rank.number for rank in closed[0].ranks] == [1, 2]
    assert len(followers()) == len(before) + 2
    closed.append(ahead(3))
    await until(lambda: len(followers()) == len(before) + 4)


async def test_one_that_has_ended_already_is_told_of(closed: list[Started]) -> None:
    before, told = set(followers()), Queue[tuple[str, int]]()
    closed.append(start_ranks(2))
    await until(lambda: set(followers()) - before)
    [pid] = set(followers()) - before
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not set(followers()) - before)
    [rank] = closed[0].ranks
    rank.at_end(lambda name, status: told.put((name, status)))
    assert told.get(timeout=60) == ("rank 1", -signal.SIGKILL)

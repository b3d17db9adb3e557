"""Threads that computed together with a loading thread end: beside those of the steps there would be too many."""

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mint_engine.model.device import end_team
from tests.waiting import until


@pytest.fixture
def loader() -> Iterator[ThreadPoolExecutor]:
    """An executor with one thread, whose computations use two threads on any machine."""
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    with ThreadPoolExecutor(1) as executor:
        yield executor
    torch.set_num_threads(usual)


def compute() -> torch.Tensor:
    return torch.arange(1 << 20, dtype=torch.float32).mul_(2).exp_()


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted as Linux tells of them")
@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="torch computes without OpenMP")  # type: ignore[no-untyped-call]
async def test_ended_threads_are_replaced_for_later_work(loader: ThreadPoolExecutor) -> None:
    asked = asyncio.get_running_loop().run_in_executor
    await asked(loader, threading.get_ident)
    before = threads()
    expected = await asked(loader, compute)
    team = threads() - before
    assert team
    await asked(loader, end_team)
    await until(lambda: not team & threads())
    assert torch.equal(await asked(loader, compute), expected)

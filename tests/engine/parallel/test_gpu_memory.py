"""A rank's GPU has room for what it holds, or the rank refuses the base: the first rank sees only its own GPU."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mint_contracts.errors import CapacityExceeded
from mint_engine.parallel import follow, messages
from mint_engine.parallel.files import Files
from mint_engine.parallel.messages import Begin
from mint_engine.parallel.rank import expect_ready
from mint_engine.preflight import check_small_files
from mint_engine.residency.policy_device import RESERVE
from tests.engine.device_double import standing_in
from tests.engine.running import save_base, settings_for
from tests.waiting import join

MEMORY = 64 << 20


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """What each of two GPUs has free."""
    found = [MEMORY, MEMORY]
    with standing_in():
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (found[device.index], MEMORY))
        monkeypatch.setattr(torch.cuda, "memory_reserved", torch.cuda.memory_allocated)
        yield found


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """The second rank's message."""
    base = save_base(tmp_path / "base")
    settings = settings_for(base, device="cuda", tensor_parallel_size=2)
    return Begin(settings, str(base), "", 1, 2, 64, torch.get_num_threads())


def refusal(begin: Begin) -> CapacityExceeded:
    """How a rank that got this message refuses it, as the first rank tells it."""
    (steps, own), (_slots, theirs) = socket.socketpair(), socket.socketpair()
    thread = threading.Thread(target=follow._live, args=(follow._Ends(own, theirs, Files(-1, -1)),))
    thread.start()
    messages.send(steps, begin)
    with pytest.raises(CapacityExceeded) as refused:
        expect_ready(steps, "rank 1", 60)
    join(thread)
    return refused.value


def test_a_rank_whose_gpu_has_less_free_than_the_first_refuses_before_it_reads(
    begin: Begin, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Path(begin.base)
    free[1] = 1 << 20
    check_small_files(begin.settings, base, "base b")
    monkeypatch.setattr("mint_engine.model.base._read_model", lambda *_, **__: pytest.fail("weights are read"))
    problem = str(refusal(begin))
    assert problem.startswith(f"rank 1: base {base}: needs at least ")
    assert "and rank 1's cuda:1 has 1 MiB of 64 MiB free; use larger GPUs" in problem


def test_a_rank_that_fills_its_gpu_while_it_loads_is_named(
    begin: Begin, free: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(follow, "lay_member", full)
    problem = str(refusal(begin))
    assert problem.startswith("rank 1: base 'file://")
    assert (
        "does not fit rank 1's GPU (OutOfMemoryError: CUDA out of memory. Tried to allocate 20 GiB); use" in problem
    )


def test_a_rank_tells_what_its_gpu_has_left(begin: Begin, free: list[int]) -> None:
    member, serving = follow._load(begin), SimpleNamespace(name="generic")
    free[1] = 20 << 20
    work: Any = follow._Work(member, serving, None)  # type: ignore[arg-type]
    (passes,) = work.passes
    assert passes.room == (20 << 20) - int(RESERVE * MEMORY)

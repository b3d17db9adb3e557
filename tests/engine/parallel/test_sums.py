"""Ranks combine what torch computes on each: real processes, the same bits on all of them, however they meet."""

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import TCPStore

from mint_contracts.errors import EngineUnavailable
from mint_engine.parallel import distributed
from mint_engine.parallel.distributed import DistributedGroup, Gloo
from mint_engine.parallel.group import Group
from mint_engine.parallel.messages import Wire
from mint_engine.parallel.shared import SharedGroup
from mint_engine.parallel.shared_memory import Extent, SharedMemory
from mint_engine.parallel.shares import Dimensions, Share, share_out
from tests.waiting import PATIENCE_S

ROWS, HIDDEN, VOCABULARY = 512, 81, 101
PLACE = ROWS * HIDDEN  # numbers of the memory's own type that one rank writes at once
SIZES = (1, 2, 63, 64, 65, 1001, 40_000, PLACE, PLACE + 1, 3 * PLACE + 7)
ROUNDS = 200
ANSWER_S = PATIENCE_S

Told = str | None  # what went wrong
Act = Callable[[Group, Connection], Told]


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def added(parts: list[torch.Tensor]) -> torch.Tensor:
    """The sum in float32, in the order of ranks, rounded once."""
    whole = torch.zeros(parts[0].shape)
    for part in parts:
        whole += part.to(torch.float32)
    return whole.to(parts[0].dtype)


def add_often(group: Group, _: Connection) -> Told:
    """Sums of every size and type, checked by each rank, and logits in between; return what went wrong."""
    share, chosen = group.share, random.Random(1)
    for number in range(ROUNDS):
        dtype = chosen.choice((torch.float32, torch.bfloat16, torch.float16))
        size = chosen.choice(SIZES)
        parts = [draw(number * share.count + rank, 1, size, dtype=dtype) for rank in range(share.count)]
        if not torch.equal(group.sum(parts[share.rank].clone()), added(parts)):
            return f"round {number}: another sum of {size} of {dtype}"
        rows = chosen.randrange(1, ROWS)
        logits = draw(number, rows, VOCABULARY).to(torch.bfloat16)
        found = group.gather(logits[:, slice(*share.vocabulary)])
        if share.rank == 0 and not torch.equal(found, logits):
            return f"round {number}: other logits"
    turned = [draw(rank, 40, 30) for rank in range(share.count)]  # not contiguous
    return None if torch.equal(group.sum(turned[share.rank].T), added(turned).T) else "another sum of columns"


def add_when_told(group: Group, pipe: Connection) -> Told:
    """Sum once after a message; return the error it raises."""
    pipe.recv()
    try:
        group.sum(torch.ones(8))
    except EngineUnavailable as error:
        return str(error)
    return None


def add_twice(group: Group, pipe: Connection) -> Told:
    """Sum once, and again after a message."""
    group.sum(torch.ones(8))
    pipe.send("met")
    return add_when_told(group, pipe)


def be(rank: int, count: int, threads: int, patience_s: float, memory: Path, act: Act, pipe: Connection) -> None:
    """Run `act` as one rank's process; send what went wrong."""
    torch.set_num_threads(threads)
    pipe.send(act(SharedGroup(join(memory, rank, count, threads, patience_s)), pipe))


def be_on_a_node(rank: int, count: int, wire: Wire, act: Act, pipe: Connection) -> None:
    """The same for a rank that shares no memory with the others."""
    torch.set_num_threads(1)
    distributed._PATIENCE = timedelta(seconds=10 * ANSWER_S)
    pipe.send(act(DistributedGroup(share_of(rank, count), Gloo(wire)), pipe))


def share_of(rank: int, count: int) -> Share:
    return share_out(Dimensions(heads=count, kv_heads=count, vocabulary=VOCABULARY), count)[rank]


def join(memory: Path, rank: int, count: int, threads: int = 1, patience_s: float = ANSWER_S) -> SharedMemory:
    with memory.open("r+b") as file:
        return SharedMemory(file.fileno(), extent(count, threads), share_of(rank, count), patience_s)


def extent(count: int, threads: int) -> Extent:
    return Extent(count, threads, ROWS, HIDDEN, VOCABULARY, torch.bfloat16)


@contextmanager
def ranks(
    count: int, memory: Path, act: Act, *, threads: int = 1, patience_s: float = ANSWER_S
) -> Iterator[list[tuple[SpawnProcess, Connection]]]:
    """Processes that run `act` together, and a pipe to each."""
    with memory.open("wb") as file:
        file.truncate(extent(count, threads).nbytes)
    arguments = [(rank, count, threads, patience_s, memory, act) for rank in range(count)]
    with processes(be, arguments) as found:
        yield found


@contextmanager
def ranks_on_nodes(count: int, act: Act) -> Iterator[list[tuple[SpawnProcess, Connection]]]:
    """The same for ranks that meet over TCP, where a stranger has written all it can into their rendezvous store."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    wire = Wire("localhost", store.port, "among us", "127.0.0.1")
    for rank in range(count):
        TCPStore("localhost", store.port, is_master=False).set(str(rank), "stranger")
    with processes(be_on_a_node, [(rank, count, wire, act) for rank in range(count)]) as found:
        yield found


@contextmanager
def processes(
    target: Callable[..., None], arguments: list[tuple[Any, ...]]
) -> Iterator[list[tuple[SpawnProcess, Connection]]]:
    """A process for each of the arguments, and a pipe to it."""
    spawn = multiprocessing.get_context("spawn")
    found: list[tuple[SpawnProcess, Connection]] = []
    try:
        for own in arguments:
            here, there = spawn.Pipe()
            process = spawn.Process(target=target, args=(*own, there))
            process.start()
            there.close()
            found.append((process, here))
        yield found
    finally:
        for process, _ in found:
            process.kill()
            process.join(PATIENCE_S)


def heard(pipe: Connection) -> Told:
    assert pipe.poll(ANSWER_S), "a rank hangs"
    told: Told = pipe.recv()
    return told


def miss_one(playing: list[tuple[SpawnProcess, Connection]]) -> None:
    """Kill one rank, and check that the others notice."""
    dead, _ = playing.pop(1)
    dead.kill()
    dead.join(PATIENCE_S)
    for _, pipe in playing:
        pipe.send("begin")
    for _, pipe in playing:
        assert "has lost one of its ranks" in (heard(pipe) or "")


@pytest.mark.parametrize(("count", "threads"), [(2, 1), (3, 1), (2, 3)])
def test_sums_and_logits_are_those_of_all_ranks(count: int, threads: int, tmp_path: Path) -> None:
    with ranks(count, tmp_path / "memory", add_often, threads=threads) as playing:
        assert [heard(pipe) for _, pipe in playing] == [None] * count


@pytest.mark.parametrize("count", [2, 3])
def test_sums_over_nodes_are_the_same_to_the_bit(count: int) -> None:
    with ranks_on_nodes(count, add_often) as playing:
        assert [heard(pipe) for _, pipe in playing] == [None] * count


def test_over_nodes_a_rank_that_dies_is_missed_at_once() -> None:
    """The others' own patience would end long after this test's."""
    with ranks_on_nodes(3, add_twice) as playing:
        assert [heard(pipe) for _, pipe in playing] == ["met"] * 3
        miss_one(playing)


def test_a_rank_that_dies_is_missed_within_the_patience_of_the_others(tmp_path: Path) -> None:
    with ranks(3, tmp_path / "memory", add_when_told, patience_s=0.5) as playing:
        miss_one(playing)


def test_waiting_ranks_are_released_when_another_cannot_go_on(tmp_path: Path) -> None:
    """It is released at once: its own patience is longer than this test's."""
    memory = tmp_path / "memory"
    with ranks(2, memory, add_when_told, patience_s=10 * ANSWER_S) as [(_, waits), _]:
        shared = join(memory, 1, 2)
        waits.send("begin")
        until_one_waits(shared)
        shared.end()
        assert "has lost one of its ranks" in (heard(waits) or "")


def until_one_waits(shared: SharedMemory) -> None:
    """Wait until one waits at the first barrier (kernels/cpp/peers.h: SharedBarriers)."""
    waiting = shared._every[64:68].view(torch.int32)
    give_up = time.monotonic() + ANSWER_S
    while not waiting[0]:
        assert time.monotonic() < give_up, "nobody comes"
        time.sleep(0.01)

"""An engine whose ranks lie on two nodes computes the same as on one node, and lets nobody else take part."""

import asyncio
import errno
import os
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mint_contracts.errors import EngineUnavailable, UnsupportedBase, WrongBase
from mint_contracts.settings import EngineSettings
from mint_contracts.source import Source
from mint_engine.build import build
from mint_engine.environment import Start
from mint_engine.parallel import messages
from mint_engine.parallel.messages import Begin, Passes, Ready, Refused
from mint_engine.parallel.rank import Rank
from mint_engine.parallel.readiness import Readiness
from mint_engine.parallel.worker import _answer
from mint_engine.scheduling.scheduler import Limits
from tests.engine import saved_families
from tests.engine.families import BY_MODULES
from tests.engine.parallel.learning import NAMES, engine
from tests.engine.parallel.nodes import endpoint_of, other_nodes, worker
from tests.engine.parallel.playing import TURNS, built, play
from tests.engine.parallel.processes import followers, ranks_until
from tests.engine.running import packed, save_adapter, save_base, settings_for
from tests.engine.training.at_once import finish
from tests.redis_process import free_port
from tests.waiting import PATIENCE_S, join, until

CLOSE = 1e-5


@contextmanager
def strangers(port: int) -> Iterator[None]:
    """Clients that connect whenever somebody listens, say nothing or the wrong thing, and stay."""
    enough, held = threading.Event(), []

    def knock() -> None:
        while not enough.wait(0.2):
            try:
                held.append(socket.create_connection(("127.0.0.1", port), 1))
                held[-1].sendall(b"GET / HTTP/1.1\r\n" * 10 if len(held) % 2 else b"")
            except OSError:
                continue

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        join(thread)
        for each in held:
            each.close()
        assert held, "nobody listened"


def test_two_nodes_compute_to_the_bit_what_two_ranks_of_one_do(tmp_path: Path) -> None:
    """With transformers' modules; adapters are loaded, replaced and cleared, while strangers connect.

    After SIGTERM all wait for the leader: a machine's shutdown or a terminal signals all processes at once.
    """
    base = saved_families.save_base("minimax_m2", tmp_path / "base", **BY_MODULES)
    served = saved_families.SERVED["minimax_m2"]
    four, nine = (saved_families.save_adapter(base, tmp_path / f"r{rank}", rank, **served) for rank in (4, 9))
    found = []
    for nodes in (1, 2):
        settings = settings_for(base, dtype="bfloat16", tensor_parallel_size=2, nodes=nodes)
        with other_nodes(settings) as group:
            with strangers(group.endpoint.port) if group.endpoint else nullcontext():
                _, slots, generation = build(settings, base, Limits(), endpoint=group.endpoint)
            try:
                workers = [each.process.pid for each in group.workers]
                for pid in (*workers, *followers(), *(rank for each in workers for rank in followers(each))):
                    os.kill(pid, signal.SIGTERM)
                slots.load(0, packed(four, slots))
                slots.load(1, packed(nine, slots))
                mixed = play(generation._forward, TURNS)
                slots.load(0, packed(nine, slots))  # replaces another
                slots.clear(1)
                found.append(torch.cat([mixed, play(generation._forward, TURNS)]))
                assert all(each.process.poll() is None for each in group.workers)
            finally:
                generation.close()
            assert [each.process.wait(60) for each in group.workers] == [0] * (nodes - 1)
    assert torch.equal(*found)


def test_two_nodes_of_two_ranks_compute_what_one_rank_does(tmp_path: Path) -> None:
    """For a base that the engine's own kernels compute."""
    base = save_base(tmp_path / "base", num_attention_heads=4, num_key_value_heads=4, hidden_size=96, head_dim=32)
    folder = save_adapter(base, tmp_path / "r4", rank=4)
    found = []
    for ranks, nodes in ((1, 1), (4, 2)):
        with built(base, ranks, nodes=nodes) as (slots, generation):
            slots.load(0, packed(folder, slots))
            slots.load(1, packed(folder, slots))
            found.append(play(generation._forward, TURNS))
    one, four = found
    assert (four - one).norm() / one.norm() < CLOSE
    assert torch.equal(four.argmax(-1), one.argmax(-1))


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt_oss"])
def test_policies_learn_on_two_nodes_what_they_learn_on_one_rank(family: str, tmp_path: Path) -> None:
    """An update that loses its node ends the engine and changes no policy."""
    base = save_base(tmp_path, hidden_size=96) if family == "llama" else saved_families.save_base(family, tmp_path)
    replayed = family != "llama"
    with engine(base, 1) as one:
        whole = one.gradients(replayed=replayed)
    with engine(base, 2, nodes=2) as two:
        for found, expected in zip(two.gradients(replayed=replayed), whole, strict=True):
            assert (found - expected).norm() / expected.norm() < 1e-4
        before = two.trainer.policy(NAMES[0]).weights.clone()
        work = two.trainer.begin(two.batches(range(len(NAMES))))
        for _ in range(3):
            work.advance()
        [node] = two.workers
        node.process.kill()
        with pytest.raises(EngineUnavailable, match="retry"):
            finish(work)
        assert two.lost
        assert torch.equal(two.trainer.policy(NAMES[0]).weights, before)


async def test_a_node_with_another_base_is_refused_and_comes_again_when_that_is_mended(tmp_path: Path) -> None:
    """Its base has the same shape, and differs in one number."""
    ours, theirs = (save_base(tmp_path / node / "models" / "tiny") for node in ("leader", "worker"))
    weights = load_file(theirs / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, theirs / "model.safetensors", {"format": "pt"})
    settings, port = over_two_nodes("pvc://models/tiny"), free_port()

    def bring_up() -> None:
        _, _, generation = build(settings, ours, Limits(), endpoint=endpoint_of(settings, port))
        generation.close()

    with worker(settings, port, tmp_path, claims=tmp_path / "worker") as other:
        with pytest.raises(
            WrongBase, match=r"node 1: base pvc://models/tiny: differs between this node and the leader"
        ):
            await asyncio.to_thread(bring_up)
        assert other.process.poll() is None
        shutil.copy(ours / "model.safetensors", theirs / "model.safetensors")
        await asyncio.to_thread(bring_up)
        assert other.process.poll() is None
        await until(lambda: not followers(other.process.pid))
        other.process.terminate()
        assert await asyncio.to_thread(other.process.wait, PATIENCE_S) == 0


async def test_a_base_that_a_node_cannot_load_is_reported_with_the_nodes_name(tmp_path: Path) -> None:
    """A worker whose claim is not mounted, and one with other settings."""
    ours = save_base(tmp_path / "leader" / "models" / "tiny")
    settings, port = over_two_nodes("pvc://models/tiny"), free_port()

    def refused(theirs: EngineSettings) -> str:
        with (
            worker(theirs, port, tmp_path, claims=tmp_path / "nowhere"),
            pytest.raises(Exception, match="node 1: ") as raised,
        ):
            build(settings, ours, Limits(), endpoint=endpoint_of(settings, port))
        return f"{type(raised.value).__name__}: {raised.value}"

    assert (
        "SourceForbidden: node 1: source 'pvc://models/tiny': claim 'models' is not mounted"
        in await asyncio.to_thread(refused, settings)
    )
    other = settings_for(ours, tensor_parallel_size=2, nodes=2, max_rank=8)
    assert "UnsupportedBase: node 1: settings: of this node" in await asyncio.to_thread(refused, other)


async def test_a_node_waits_for_its_ranks_as_long_as_its_leader_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That wait begins when the leader has read its base: a large base's share may take hours from a slow disk."""
    bounds: list[float | None] = []

    class Recorded(Readiness):
        def hear_all(self, timeout_s: float | None) -> Sequence[Passes]:
            bounds.append(timeout_s)
            return super().hear_all(timeout_s)

    monkeypatch.setattr("mint_engine.parallel.worker.Readiness", Recorded)
    base = save_base(tmp_path)
    settings = settings_for(base, tensor_parallel_size=4, nodes=2)
    start = Start(settings, "tiny-0-1", "127.0.0.1:1", tmp_path, 1, 2, node=1)
    leader, steps = socket.socketpair()
    with ranks_until(2) as ranks:
        answering = asyncio.create_task(asyncio.to_thread(_answer, start, steps, ranks))
        await until(lambda: bounds == [None])
        ranks[0].tell(messages.encode(Begin(settings, str(base), "", 1, 4, 64, 1)))
        await answering
        assert messages.decode_answer(messages.receive(leader)) == Ready()


@pytest.mark.parametrize(("family", "chooses"), [("qwen3_moe", True), ("deepseek_v32", True), ("llama", False)])
def test_ranks_that_would_choose_by_other_numbers_are_refused(family: str, chooses: bool, tmp_path: Path) -> None:
    """Nodes with different CPUs round differently: sums may differ a little, choices must not."""
    base = saved_families.save_base(family, tmp_path)
    settings = settings_for(base, tensor_parallel_size=2, nodes=2)
    why = r"rank 1: .* needs ranks that choose the same experts or tokens, .* and the leader on another kind,"
    with ranks_until(2) as [rank]:
        rank.tell(messages.encode(Begin(settings, str(base), "", 1, 2, 64, 1, "another kind")))
        with pytest.raises(UnsupportedBase, match=why) if chooses else nullcontext():
            rank.expect_ready(PATIENCE_S)


async def test_a_node_tells_at_once_that_a_rank_has_died_while_another_reads(tmp_path: Path) -> None:
    start = Start(over_two_nodes("pvc://models/tiny"), "tiny-0-1", "127.0.0.1:1", tmp_path, 1, 2, node=1)
    leader, steps = socket.socketpair()
    leader.settimeout(60)
    with ranks_until(3) as ranks:
        answering = asyncio.create_task(asyncio.to_thread(_answer, start, steps, ranks))
        await until(lambda: len(followers()) == 2)
        os.kill(max(followers()), signal.SIGKILL)  # the other one has been told nothing yet, and sends nothing
        told = messages.decode_answer(await asyncio.to_thread(messages.receive, leader))
        await answering
    assert isinstance(told, Refused)
    assert "of this engine has ended (it was killed" in told.problem
    assert told.reason == EngineUnavailable.__name__


async def test_no_listener_and_no_rank_stays_if_a_rank_cannot_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path)
    settings = settings_for(base, tensor_parallel_size=6, nodes=2)
    endpoint, first = endpoint_of(settings, free_port()), list[Rank]()

    def start_one(*arguments: Any) -> Rank:
        if first:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        first.append(Rank(*arguments))
        return first[0]

    monkeypatch.setattr("mint_engine.parallel.ranks.Rank", start_one)
    for _ in range(2):
        with pytest.raises(OSError, match="Too many open files"):
            build(settings, base, endpoint=endpoint)
        started = first.pop()
        assert not started._thread.is_alive()


def over_two_nodes(uri: str) -> EngineSettings:
    return settings_for(Path("none"), source=Source(uri), tensor_parallel_size=2, nodes=2)

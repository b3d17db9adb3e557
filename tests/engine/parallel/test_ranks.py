"""Ranks of an engine live and die together, and the engine answers as if it were one."""

import asyncio
import errno
import functools
import os
import signal
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from safetensors.torch import load_file

from mint_contracts.errors import EngineUnavailable, Internal
from mint_contracts.map_reader import MapReader
from mint_contracts.records import EngineView
from mint_contracts.source import Source
from mint_engine.adapters.mapped import Opener
from mint_engine.build import build
from mint_engine.model.forward import Forward
from mint_engine.model.span import Span
from mint_engine.parallel import follow, messages
from mint_engine.parallel.fork_client import ForkClient
from mint_engine.parallel.messages import Begin, Clear
from mint_engine.parallel.rank import ANSWER_S, LAUNCH_S, Rank
from mint_engine.parallel.shared_memory import PATIENCE_S, SharedMemory
from mint_engine.residency.holding import Holder
from mint_engine.residency.slots import NO_SLOT
from mint_engine.scheduling.scheduler import Limits
from mint_engine.serve import listen
from mint_engine.sources.load_progress import LoadProgress
from tests.engine import saved_families
from tests.engine.families import BY_MODULES, span
from tests.engine.parallel.nodes import worker
from tests.engine.parallel.playing import built, draw_adapter
from tests.engine.parallel.processes import followers, fork_servers, ranks_until
from tests.engine.pods import pod, view
from tests.engine.running import (
    FixedHolder,
    Running,
    ask,
    peft_answer,
    peft_scores,
    running,
    save_adapter,
    save_base,
    settings_for,
)
from tests.engine.tiers import Watched
from tests.redis_process import RedisProcess, free_port, patient
from tests.waiting import block_until, join, until

PROMPT = [7, 21, 40, 3, 99, 120, 64, 8, 15, 200, 33, 71, 18, 5, 90, 111, 52, 77, 160, 9]
LONGER = [*PROMPT, 44, 17, 230]  # its first page is shared with the other's
CLOSE = 2e-4
UNKNOWN = 1 << 30  # not a token of the base: looking it up raises


def one(forward: Forward) -> Span:
    """The first token of a request."""
    return span(forward.cache, 0, 1, 0, [1], NO_SLOT)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, whose heads two ranks cannot share evenly, and adapters on all of it."""
    folder = tmp_path_factory.mktemp("files")
    base = save_base(folder / "base", hidden_size=96, num_attention_heads=6, num_key_value_heads=3)
    for rank in (4, 8):
        save_adapter(base, folder / f"r{rank}", rank=rank)
    return folder


@pytest.fixture(scope="module")
def routed_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, which routes to experts and is not computed by the engine's own kernels, and adapters on all of it."""
    folder = tmp_path_factory.mktemp("routed")
    base = saved_families.save_base("minimax_m2", folder / "base", **BY_MODULES)
    for rank in (4, 8):
        saved_families.save_adapter(base, folder / f"r{rank}", rank, **saved_families.SERVED["minimax_m2"])
    return folder


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def _answers_like_peft(engine: Running, files: Path, name: str, folder: Path | None) -> None:
    tokens, scores = peft_answer(files / "base", folder, PROMPT, 8)
    answer = await ask(engine, PROMPT, name, max_tokens=8, ignore_eos=True, logprobs=0)
    assert answer.tokens == tokens
    assert answer.logprobs == pytest.approx(scores, abs=CLOSE)


@pytest.mark.parametrize(("of", "nodes"), [("files", 1), ("routed_files", 1), ("files", 2)])
async def test_two_ranks_answer_like_peft_alone_and_mixed_until_one_dies(
    of: str, nodes: int, request: pytest.FixtureRequest
) -> None:
    files: Path = request.getfixturevalue(of)
    adapters = {"four": files / "r4", "eight": files / "r8"}
    asked: list[tuple[str, Path | None]] = [("", None), *adapters.items()]
    async with running(files / "base", dict(adapters), tensor_parallel_size=2, nodes=nodes) as engine:
        for name, folder in asked:
            await _answers_like_peft(engine, files, name, folder)
        async with asyncio.TaskGroup() as group:  # in one batch, each from pages that the first round left
            for name, folder in asked:
                group.create_task(_answers_like_peft(engine, files, name, folder))
        longer = await ask(engine, LONGER, "four", max_tokens=1, ignore_eos=True, logprobs=0)
        expected = peft_scores(files / "base", files / "r4", [*LONGER, *longer.tokens])
        assert longer.logprobs == pytest.approx(expected[-1:], abs=CLOSE)
        engine.holder.load("four", files / "r8")  # another revision in a used slot
        await _answers_like_peft(engine, files, "four", files / "r8")
        engine.holder.clear("eight")
        await _answers_like_peft(engine, files, "eight", None)

        [rank] = followers() if nodes == 1 else [worker.process.pid for worker in engine.workers]
        os.kill(rank, signal.SIGKILL)
        async with asyncio.timeout(60):
            await engine.server.lost.wait()
        assert not engine.server.ready
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(engine, PROMPT, max_tokens=8)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_rank_that_dies_within_a_step_ends_it(routed_files: Path) -> None:
    """The others wait for it in shared memory, and are released when its end is noticed."""
    async with running(routed_files / "base", tensor_parallel_size=2) as engine:
        [rank] = followers()
        os.kill(rank, signal.SIGSTOP)
        asked = asyncio.create_task(ask(engine, PROMPT, max_tokens=8))
        await until(lambda: engine.free_pages < engine.all_pages)
        os.kill(rank, signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asked
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        async with asyncio.timeout(60):
            await engine.server.lost.wait()


@pytest.mark.parametrize("of", ["files", "routed_files"])
def test_ranks_whose_steps_are_small_have_room_for_what_proves_them(of: str, request: pytest.FixtureRequest) -> None:
    files: Path = request.getfixturevalue(of)
    with built(files / "base", 2, Limits(running=2, step_tokens=4)) as (_, generation):
        forward = generation._forward
        assert forward.run([5], [one(forward)], [0]).shape == (1, forward.base.vocab_size)


def test_a_rank_that_raises_within_a_step_releases_the_first(
    routed_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first waits in the middle of a layer for what never comes, with a patience longer than this test's."""
    patient = functools.partial(SharedMemory, patience_s=3600.0)
    monkeypatch.setattr("mint_engine.parallel.member.SharedMemory", patient)
    with built(routed_files / "base", 2) as (_, generation):
        forward = generation._forward
        assert forward._others is not None
        with (
            pytest.raises(EngineUnavailable, match="has lost one of its ranks"),
            forward._others.step([UNKNOWN], [one(forward)], [0]),
        ):
            forward._pass.run([5], [one(forward)], [0])


@pytest.mark.parametrize("of", ["files", "routed_files"])
def test_a_slot_changes_on_each_rank_after_the_steps_that_read_it(of: str, request: pytest.FixtureRequest) -> None:
    files: Path = request.getfixturevalue(of)
    with built(files / "base", 2) as (slots, generation):
        slots.load(0, draw_adapter(slots, 4))
        forward = generation._forward
        others: Any = forward._others
        step: Any = PROMPT, [span(forward.cache, 0, len(PROMPT), 0, [1, 2], 0)], [len(PROMPT) - 1]
        expected = forward.run(*step).clone()
        with others.step(*step):
            pass  # the first is far ahead of the other, which waits for it in the middle of the step
        with torch.inference_mode(), others.clear(0):
            late = forward._pass.run(*step).clone()
        assert torch.equal(late, expected)
        assert not torch.equal(forward.run(*step), expected), "the other rank has cleared its slot"


def test_a_rank_that_does_not_launch_its_steps_refuses_to_change_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LAUNCH_S <= ANSWER_S / 2, "whoever listens until then takes a rank for lost"
    slots, launched = Watched(1), follow._Launched()
    slots.load(0, draw_adapter(slots, 4))
    monkeypatch.setattr(follow, "LAUNCH_S", 0.0)
    for _ in range(2):
        problem = follow._change(Clear(0, 2), [], slots, launched, Opener())
        assert problem == "a rank has not launched step 2 within 0 s"
        assert not slots.is_empty(0)
        launched.add()
    assert follow._change(Clear(0, 2), [], slots, launched, Opener()) == ""
    assert slots.is_empty(0)


async def test_a_step_that_fails_on_the_first_rank_alone_ends_the_others(
    routed_files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """They wait for it in the middle of a layer, but not for long, and do not report a defect of their own."""
    own = ForkClient()  # its output and its ranks' goes where this test can read it
    monkeypatch.setattr("mint_engine.parallel.rank.fork_client", lambda: own)
    with built(routed_files / "base", 2) as (_, generation):
        [rank] = followers()
        monkeypatch.setattr(generation._forward._pass, "_base", None)
        with pytest.raises(AttributeError):
            generation._forward.run([5], [one(generation._forward)], [0])
        await until(lambda: not alive(rank), timeout_s=PATIENCE_S / 2)
    own._control.close()
    told = capfd.readouterr().err
    assert '"settled"' in told, "its later garbage collections would be waited for"
    assert "rank_lost" in told
    assert "rank_defect" not in told


@pytest.mark.parametrize("dies", ["another node's rank", "the leader"])
async def test_nodes_end_together(dies: str, files: Path, redis_process: RedisProcess, tmp_path: Path) -> None:
    """As processes of pods, so that all of the engine's pods restart, with a log event that says why."""
    redis = patient(redis_process.url)
    await redis.flushall()
    reader = MapReader(redis)
    source = Source(f"file://{files}/base")
    with (
        pod(tmp_path, redis_process, source, tensor_parallel_size=2, nodes=2) as leader,
        worker(leader.settings, leader.ranks_port, tmp_path, password="") as other,
    ):
        await _until_ready(reader, leader.name)
        [rank] = followers(other.process.pid)
        os.kill(rank if dies == "another node's rank" else leader.process.pid, signal.SIGKILL)
        assert await leader.ended() == (1 if dies == "another node's rank" else -signal.SIGKILL)
        assert await asyncio.to_thread(other.process.wait, 60) == (1 if dies == "another node's rank" else 0)
        await until(lambda: not alive(rank))
        if dies == "another node's rank":
            assert other.has_logged("rank_ended")
            assert {"rank_ended", "engine_lost"} <= {line["event"] for line in leader.lines()}
    await redis.aclose()


@pytest.mark.parametrize("dies", ["rank 1", "rank 0"])
async def test_ranks_end_together(dies: str, files: Path, redis_process: RedisProcess, tmp_path: Path) -> None:
    """The pod's process ends, so that Kubernetes restarts all of it, and no process is left behind."""
    redis = patient(redis_process.url)
    await redis.flushall()
    reader = MapReader(redis)
    with pod(tmp_path, redis_process, Source(f"file://{files}/base"), tensor_parallel_size=2) as engine:
        await _until_ready(reader, engine.name)
        [rank] = followers(engine.process.pid)
        os.kill(rank if dies == "rank 1" else engine.process.pid, signal.SIGKILL)
        assert await engine.ended() == (1 if dies == "rank 1" else -signal.SIGKILL)
        await until(lambda: not alive(rank))
        if dies == "rank 1":
            last = await view(reader, engine.name)
            assert last is None or last.record is None or not last.record.ready
            assert "engine_lost" in {line["event"] for line in engine.lines()}
    await redis.aclose()


@pytest.mark.parametrize(("ranks", "count"), [(1, 0), (2, 1)])
async def test_the_fork_server_starts_before_there_is_a_base(
    ranks: int, count: int, redis_process: RedisProcess, tmp_path: Path
) -> None:
    with pod(tmp_path, redis_process, Source(f"file://{tmp_path}/none"), tensor_parallel_size=ranks) as engine:
        await until(lambda: "base_refused" in {line["event"] for line in engine.lines()}, timeout_s=300)
        assert len(fork_servers(engine.process.pid)) == count


async def test_the_fork_server_starts_on_another_node_before_the_leader_is_there(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "none", tensor_parallel_size=2, nodes=2)
    with worker(settings, free_port(), tmp_path) as other:
        await until(lambda: len(fork_servers(other.process.pid)) == 1)


async def _until_ready(reader: MapReader, engine: str) -> None:
    """Wait until the map has the engine as ready."""

    async def ready() -> EngineView | None:
        found = await view(reader, engine)
        return found if found and found.record and found.record.ready else None

    await until(ready, timeout_s=300)


async def test_ranks_end_where_the_engine_finds_no_place_for_its_adapters(files: Path) -> None:
    def no_place(*_: object) -> Holder:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server = await listen(settings_for(files / "base", tensor_parallel_size=2), "tiny-0", 0)
    try:
        with pytest.raises(OSError, match="No space left"):
            await server.load(files / "base", no_place)
        await until(lambda: not followers())
        assert not server.lost.is_set(), "the base may be loaded again"
        await server.load(files / "base", lambda _, slots: FixedHolder(slots, {}))
        assert len(followers()) == 1
    finally:
        await server.drain(30)


async def test_ranks_end_where_the_first_one_can_not_serve_what_all_have_loaded(tmp_path: Path) -> None:
    """For example because of an odd value in the config: another try would start more ranks, each with its share."""
    base = save_base(tmp_path, num_experts_per_tok=2, num_local_experts="many")
    with pytest.raises(ValueError, match="many"):
        build(settings_for(base, tensor_parallel_size=2), base)
    await until(lambda: not followers())


def test_a_defect_while_a_rank_loads_is_reported(files: Path) -> None:
    """It must not look as if the rank had ended, after which the engine would try again at once."""
    no_threads = Begin(settings_for(files / "base", tensor_parallel_size=2), str(files / "base"), "", 1, 2, 64, 0)
    with ranks_until(2) as [rank]:
        rank.tell(messages.encode(no_threads))
        with pytest.raises(Internal, match=r"rank 1: .* could not be loaded \(RuntimeError\); see the log"):
            rank.expect_ready(300)


async def test_the_first_rank_stops_reading_the_base_when_another_dies(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a large base would take the first rank many minutes; its error says how the other has ended."""
    progress = LoadProgress()

    class Killed(Rank):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            os.kill(block_until(followers)[0], signal.SIGKILL)
            join(self._thread)

    monkeypatch.setattr("mint_engine.parallel.ranks.Rank", Killed)
    with pytest.raises(EngineUnavailable, match=r"rank 1: of this engine has ended \(it was killed, probably"):
        build(settings_for(files / "base", tensor_parallel_size=2), files / "base", progress=progress)
    read = progress.now
    assert read is not None
    beside = [
        each for name, each in load_file(files / "base" / "model.safetensors").items() if ".layers." not in name
    ]
    assert read.done == sum(each.nbytes for each in beside) < read.total
    assert not followers()


async def test_a_rank_that_fails_at_a_slot_ends_at_once(files: Path) -> None:
    """It has no answer, and the contents of its slots are unknown."""
    with built(files / "base", 2) as (slots, generation):
        [rank] = followers()
        others: Any = generation._forward._others
        with pytest.raises(EngineUnavailable, match="rank 1"), others.clear(slots.count):
            pass
        await until(lambda: not alive(rank), timeout_s=ANSWER_S / 2)
        assert others.lost

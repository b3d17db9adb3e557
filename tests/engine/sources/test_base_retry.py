"""A base that cannot be loaded yet: the engine reports why, and serves as soon as it can."""

import asyncio
import os
import re
import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec.structs import replace
from safetensors.torch import load_file, save_file

from mint_contracts import backends
from mint_contracts.errors import CorruptFile
from mint_contracts.map_reader import MapReader
from mint_contracts.records import EngineRecord
from mint_contracts.settings import REDIS_URL
from mint_contracts.source import Source
from mint_engine import process
from mint_engine.environment import Start
from mint_engine.model import forward, stored, weight_loader
from mint_engine.model.base import Base, load_base
from mint_engine.serve import listen
from mint_engine.sources.fetch_base import cached_base
from tests.engine import stores
from tests.engine.running import save_base, settings_for
from tests.engine_views import engine_views
from tests.redis_process import patient
from tests.waiting import PATIENCE_S, block_until, until

BASE = "default/mended"


@pytest.mark.parametrize("broken", ["absent", "truncated", "pickled"])
async def test_a_base_that_is_mended_is_served_without_a_restart(
    broken: str, tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "RECHECK_S", 0.05)
    monkeypatch.setenv(REDIS_URL, redis_server)
    folder = tmp_path / "base"
    reason = {"absent": "SourceNotFound", "truncated": "CorruptFile", "pickled": "UnsafeFormat"}[broken]
    if broken != "absent":
        folder.mkdir()
    if broken == "truncated":
        save_base(folder)
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:-100])
    if broken == "pickled":
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")

    told = settings_for(folder, base_model=BASE)
    server = await listen(told, broken, 0)
    engine = process.Process(Start(told, broken, "127.0.0.1:1", tmp_path / "cache", 0, 0), server)
    redis = patient(redis_server)
    following = asyncio.create_task(engine.agent.run())
    loading = asyncio.create_task(engine.load_base())

    async def record() -> EngineRecord | None:
        views = await engine_views(MapReader(redis), BASE)
        return next((view.record for view in views if view.engine == broken), None)

    async def refused() -> bool:
        found = await record()
        return bool(found and found.failure and found.failure.reason == reason and not found.ready)

    async def ready() -> bool:
        found = await record()
        return bool(found and found.ready and found.failure is None)

    await until(refused)
    folder.mkdir(exist_ok=True)
    save_base(folder)
    await until(ready)
    await loading
    await until(lambda: server.ready)
    await engine.drain()
    assert not server.ready
    following.cancel()
    await asyncio.wait({following})
    await engine.agent.leave()
    await redis.aclose()


async def test_a_base_that_is_refused_once_loaded_has_left_memory_before_it_is_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "RECHECK_S", 0.05)
    loaded: list[weakref.ref[Any]] = []

    def watched(*args: Any, **more: Any) -> Base:
        # Waits, since the thread that loaded the last one may not have dropped its error yet, which refers to it.
        block_until(lambda: all(each() is None for each in loaded))
        base = load_base(*args, **more)
        loaded.append(weakref.ref(base.model))
        return base

    monkeypatch.setattr("mint_engine.build.load_base", watched)
    monkeypatch.setitem(forward._TOLERANCE, torch.float32, -1.0)  # no pass is accurate enough
    told = settings_for(save_base(tmp_path / "base"))
    server = await listen(told, "short", 0)
    engine = process.Process(Start(told, "short", "127.0.0.1:1", tmp_path / "cache", 0, 0), server)
    loading = asyncio.create_task(engine.load_base())
    await until(lambda: len(loaded) > 2)
    loading.cancel()
    await asyncio.wait({loading})
    await server.drain(1)


async def test_a_remote_base_that_its_settings_do_not_fit_is_not_copied(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    save_base(tmp_path / "base", max_position_embeddings=100)
    with stores.serving(stores.Files, tmp_path) as (address, handler):
        source = Source(f"http://{address}/base")
        told = replace(settings_for(tmp_path, context_length=128), source=source)
        server = await listen(told, "remote", 0)
        engine = process.Process(Start(told, "remote", "127.0.0.1:1", tmp_path / "cache", 0, 0), server)
        failure = await engine._try_base()
        await server.drain(1)
        assert failure is not None
        assert failure.message == "contextLength: is 128, but the base has 100 positions; lower it"
        assert "GET /base/config.json" in handler.seen
        assert "GET /base/model.safetensors" not in handler.seen


async def test_a_copy_that_is_refused_is_let_go_and_made_anew_once_its_source_is_mended(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    folder = save_base(tmp_path / "base")
    whole = (folder / "model.safetensors").read_bytes()
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.norm.weight": torch.full_like(tensors["model.norm.weight"], torch.nan)},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    with stores.serving(stores.Files, tmp_path) as (address, handler):
        told = replace(settings_for(tmp_path), source=Source(f"http://{address}/base"))
        server = await listen(told, "remote", 0)
        engine = process.Process(Start(told, "remote", "127.0.0.1:1", tmp_path / "cache", 0, 0), server)
        first, asked = await engine._try_base(), len(handler.seen)
        assert first is not None
        assert first.reason == "NonFiniteWeights"
        assert not list((tmp_path / "cache" / "base").iterdir())
        assert await engine._try_base() == first
        assert "GET /base/model.safetensors" not in handler.seen[asked:], "it is not copied again"
        (folder / "model.safetensors").write_bytes(whole)
        os.utime(folder / "model.safetensors", (1, 1))  # another second: this server's only sign of a change
        assert await engine._try_base() is None
        await server.drain(1)


@pytest.mark.parametrize("who", ["node 1", "rank 1", "base 'http://elsewhere'"])
async def test_a_copy_stays_where_it_is_another_nodes_that_is_broken(
    who: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def load(*_: object) -> None:
        raise CorruptFile(who, "cannot be read from its disk; get its files again")

    backends.backend.cache_clear()
    save_base(tmp_path / "base")
    with stores.serving(stores.Files, tmp_path) as (address, _):
        told = replace(settings_for(tmp_path), source=Source(f"http://{address}/base"))
        server = await listen(told, "remote", 0)
        monkeypatch.setattr(server, "load", load)
        engine = process.Process(Start(told, "remote", "127.0.0.1:1", tmp_path / "cache", 0, 0), server)
        failure = await engine._try_base()
        await server.drain(1)
    assert failure is not None
    assert failure.reason == "CorruptFile"
    assert cached_base(told.source, tmp_path / "cache").exists() is (who == "node 1")


async def test_a_defect_as_a_copy_is_deleted_is_reported_and_the_base_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody awaits the task that brings the base up: with an error of its own it would end unseen."""

    def drop(*_: object) -> None:
        raise UnboundLocalError("an oversight")

    folder = save_base(tmp_path / "base")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    told = settings_for(folder)
    server = await listen(told, "broken", 0)
    engine = process.Process(Start(told, "broken", "127.0.0.1:1", tmp_path / "cache", 0, 0), server)
    monkeypatch.setattr(process, "drop_base", drop)
    failure = await engine._try_base()
    assert failure is not None
    assert (failure.reason, "UnboundLocalError" in failure.message) == ("Internal", True)
    (folder / "model.safetensors").write_bytes(whole)
    assert await engine._try_base() is None
    await server.drain(1)


@pytest.mark.parametrize("remote", [True, False])
async def test_a_cache_that_can_not_be_written_is_reported_as_what_it_is(remote: bool, tmp_path: Path) -> None:
    folder, cache = save_base(tmp_path / "base"), tmp_path / "cache"
    cache.touch()
    with stores.serving(stores.Files, tmp_path) as (address, _):
        told = settings_for(folder)
        told = replace(told, source=Source(f"http://{address}/base")) if remote else told
        server = await listen(told, "uncached", 0)
        engine = process.Process(Start(told, "uncached", "127.0.0.1:1", cache, 0, 0), server)
        failure = await engine._try_base()
        assert failure is not None
        written = cache if remote else cache / "adapters"
        why = f"cache '{written}': could not be written (Not a directory); retrying"
        assert (failure.reason, failure.message) == ("SourceUnavailable", why)
        cache.unlink()
        assert await engine._try_base() is None
        await server.drain(1)


def load_with_a_lost_block(address: str, cache: Path) -> list[str]:
    """Why the base is refused, and refused again, in a process whose disk loses the copied files.

    The file is truncated once it is mapped: pages beyond a file's end cannot be read.
    """
    open_tensors, losses = stored.open_tensors, [1]

    def lose(files: list[str]) -> dict[str, stored.Stored]:
        found = open_tensors(files)
        for file in files if losses else ():
            os.truncate(file, 0)
        losses.clear()
        return found

    async def load() -> list[str]:
        told = replace(settings_for(cache), source=Source(f"http://{address}/base"))
        server = await listen(told, "losing", 0)
        engine = process.Process(Start(told, "losing", "127.0.0.1:1", cache, 0, 0), server)
        failures = [await engine._try_base() for _ in range(2)]
        await server.drain(1)
        return [f"{failure.reason}: {failure.message}" if failure else "" for failure in failures]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(weight_loader, "open_tensors", lose)
        return asyncio.run(load())


def test_a_copy_of_which_a_block_is_lost_is_made_anew_and_ends_nobody(tmp_path: Path) -> None:
    save_base(tmp_path / "base")
    with (
        stores.serving(stores.Files, tmp_path) as (address, _),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as another,
    ):
        lost, made = another.submit(load_with_a_lost_block, address, tmp_path / "cache").result(PATIENCE_S)
    assert re.fullmatch(r"CorruptFile: .*model.safetensors: cannot be read from its disk .*; get its .*", lost)
    assert made == ""

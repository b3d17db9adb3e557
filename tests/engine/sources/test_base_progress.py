"""An engine's progress with its base, as its heartbeat reports it."""

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from mint_contracts import backends
from mint_contracts.map_reader import MapReader
from mint_contracts.records import COPYING, LOADING, Bringing
from mint_contracts.settings import REDIS_URL
from mint_contracts.source import Source
from mint_engine import process
from mint_engine.environment import Start
from mint_engine.model.base import load_base
from mint_engine.serve import listen
from mint_engine.sources.load_progress import LoadProgress
from tests.engine import stores
from tests.engine.running import save_base, settings_for
from tests.engine_views import engine_views
from tests.redis_process import patient
from tests.waiting import PATIENCE_S, until

THIRD = "model-00003-of-00005.safetensors"


class Slow(stores.Files):
    """Holds back the third file of the weights until the test lets it go on."""

    on = threading.Event()

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        if self.path.endswith(THIRD):
            self.on.wait(PATIENCE_S)
        super().do_GET()


async def test_the_heartbeat_tells_how_much_of_the_base_is_copied(
    tmp_path: Path, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.backend.cache_clear()
    monkeypatch.setenv(REDIS_URL, redis_server)
    folder = save_base(tmp_path / "base", max_shard_size="100KB")
    sizes = [path.stat().st_size for path in sorted(folder.glob("model-*.safetensors"))]
    assert len(sizes) == 5
    redis = patient(redis_server)
    with stores.serving(Slow, tmp_path) as (address, _):
        told = replace(settings_for(tmp_path), base_model="default/slow", source=Source(f"http://{address}/base"))
        server = await listen(told, "slow", 0)
        engine = process.Process(Start(told, "slow", "127.0.0.1:1", tmp_path / "cache", 0, 0), server)
        following, loading = asyncio.create_task(engine.agent.run()), asyncio.create_task(engine.load_base())

        async def bringing() -> Bringing | None:
            views = await engine_views(MapReader(redis), told.base_model)
            record = next((view.record for view in views if view.engine == "slow"), None)
            return record.bringing if record else None

        async def copied() -> bool:
            found = await bringing()
            return found is not None and (found.phase, found.done) == (COPYING, sum(sizes[:2]))

        async def ended() -> bool:
            return server.ready and await bringing() is None

        try:
            await until(copied)
            found = await bringing()
            assert found is not None
            assert found.total == sum(sizes)
            assert found.per_s > 0
        finally:
            Slow.on.set()
        await loading
        await until(ended)
        await engine.drain()
    following.cancel()
    await asyncio.wait({following})
    await engine.agent.leave()
    await redis.aclose()


def test_what_is_read_into_memory_is_counted_to_the_last_byte(tmp_path: Path) -> None:
    progress = LoadProgress()
    folder = save_base(tmp_path / "base")
    load_base(folder, torch.float32, torch.device("cpu"), progress=progress)
    found = progress.now
    assert found is not None
    assert found.phase == LOADING
    assert found.done == found.total
    assert 0 < (folder / "model.safetensors").stat().st_size - found.total < 10_000, "all but its header"


def test_a_rate_is_of_what_was_moved_and_a_share_of_what_is_there() -> None:
    seconds = [0.0]
    progress = LoadProgress(lambda: seconds[0])
    progress.begin(COPYING, 1000)
    progress.already_there(500)
    progress.moved(100)
    seconds[0] = 10.0
    found = progress.now
    assert found == Bringing(COPYING, 600, 1000, 10.0)
    assert (found.percent, found.left_s) == (60, 40)


def test_no_progress_is_reported_before_and_after_a_load() -> None:
    progress = LoadProgress()
    progress.begin(COPYING, 1000)
    progress.end()
    assert [progress.now, LoadProgress().now] == [None, None]

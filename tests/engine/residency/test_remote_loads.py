"""Adapters from remote storage load many at once: waiting for one holds up no other."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from mint_contracts import backends
from mint_contracts.errors import MintError, SourceNotFound, SourceUnavailable
from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.residency import loading
from mint_engine.residency.read_concurrency import ReadConcurrency
from mint_engine.residency.residency import LIMITS
from mint_engine.sources import hosts
from mint_engine.sources.fetch import PACKED, WEIGHTS
from mint_engine.sources.hosts import Hosts
from tests.engine import stores
from tests.engine.made import read_tiny
from tests.engine.tiers import NAMES, Scene
from tests.waiting import until

LIMIT_S = 60.0  # only failing tests wait this long


class Meeting(stores.Files):
    """Sends weights only once as many are requested as may be loaded at once."""

    met = threading.Barrier(LIMITS.remote_workers)

    def do_GET(self) -> None:  # noqa: N802
        if self.path.endswith(WEIGHTS):
            self.met.wait(LIMIT_S)
        super().do_GET()


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy between this machine and itself."""
    backends.backend.cache_clear()
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.usefixtures("direct")
@pytest.mark.parametrize("by", ["wave", "requests"])
async def test_slow_loads_overlap(scene: Callable[..., Scene], store: Path, tmp_path: Path, by: str) -> None:
    for number in range(LIMITS.remote_workers):
        shutil.copytree(store / NAMES[0], tmp_path / "shelf" / f"n{number}")
    here = scene(slots=LIMITS.remote_workers, host=1 << 24, disk=1 << 24, store=None)
    with stores.serving(Meeting, tmp_path / "shelf") as (address, _):
        sources = {f"far/n{n}": Source(f"http://{address}/n{n}") for n in range(LIMITS.remote_workers)}
        if by == "wave":
            here.residency.want(Assignment(name, source, Tier.DISK) for name, source in sources.items())
        else:
            await asyncio.gather(*[once(here, name, source) for name, source in sources.items()])
        await until(lambda: all(here.tier(name) is not Tier.REMOTE for name in sources), LIMIT_S)


async def once(here: Scene, name: str, source: Source) -> None:
    async with here.residency.hold(name, source):
        pass


@pytest.mark.usefixtures("direct")
async def test_remote_loads_that_wait_take_no_local_ones_place(scene: Callable[..., Scene], store: Path) -> None:
    here, asked, go_on = scene(slots=8, store=None), threading.Semaphore(0), threading.Event()

    class Silent(stores.Files):
        def do_HEAD(self) -> None:  # noqa: N802
            asked.release()
            assert go_on.wait(3 * LIMIT_S)
            super().do_HEAD()

    with stores.serving(Silent, store) as (address, _):
        far = [Assignment(f"far/{n}", Source(f"http://{address}/{NAMES[0]}", f"{n}"), Tier.DISK) for n in range(40)]
        near = [Assignment(name, Source(f"file://{store}/{name}"), Tier.DEVICE) for name in NAMES]
        here.residency.want([*far, *near])
        try:
            await until(lambda: all(here.tier(name) is Tier.DEVICE for name in NAMES), LIMIT_S)
            await until(lambda: len(here.residency.books.loading) == LIMITS.remote_workers, LIMIT_S)
        finally:
            go_on.set()
        await until(lambda: all(here.tier(each.adapter) is Tier.DISK for each in far), LIMIT_S)


def test_only_few_large_adapters_are_read_at_once() -> None:
    together, reading, go_on = ReadConcurrency(few=2, most_bytes=100), threading.Semaphore(0), threading.Event()
    inside: list[int] = []

    def read(nbytes: int) -> int:
        with together.reading(nbytes):
            inside.append(nbytes)
            reading.release()
            assert go_on.wait(LIMIT_S)
            inside.remove(nbytes)
            return nbytes

    with ThreadPoolExecutor(8) as threads:
        large = [threads.submit(read, 1000) for _ in range(2)]
        assert all(reading.acquire(timeout=LIMIT_S) for _ in large), "however large they are"
        others = [threads.submit(read, 90) for _ in range(3)]
        assert not reading.acquire(timeout=0.05)
        assert inside == [1000, 1000]
        go_on.set()
        assert [each.result(LIMIT_S) for each in (*large, *others)] == [1000, 1000, 90, 90, 90]
    with together.reading(40), together.reading(30), together.reading(30):
        pass  # many small ones at once
    assert LIMITS.workers < LIMITS.remote_workers


async def test_small_adapters_that_keep_coming_do_not_keep_a_large_one_out() -> None:
    together, came = ReadConcurrency(few=2, most_bytes=100), list[int]()

    def read(nbytes: int) -> None:
        with together.reading(nbytes):
            came.append(nbytes)

    with ThreadPoolExecutor(2) as threads, together.reading(40):
        with together.reading(30):
            threads.submit(read, 1000)
            await until(lambda: len(together._line) == 1)
            threads.submit(read, 20)  # beside the others there is room for it
            await until(lambda: len(together._line) == 2)
            assert not came
        await until(lambda: came == [1000, 20])


@pytest.mark.usefixtures("direct")
async def test_reading_again_for_the_error_takes_no_second_place(scene: Callable[..., Scene], store: Path) -> None:
    sound = read_tiny(store / NAMES[0])
    run = torch.full_like(sound.run, torch.nan)
    with (store / NAMES[0] / PACKED).open("wb") as file:
        packed_file.write(Packed(packed_file.complete(sound.header, run), run), file)
    here = scene(slots=1, store=None)
    here.loader._read_concurrency = ReadConcurrency(few=1, most_bytes=0)
    with stores.serving(stores.Files, store) as (address, _):
        here.residency.want([Assignment("broken", Source(f"http://{address}/{NAMES[0]}"), Tier.DISK)])
        await until(lambda: here.failure("broken") == "NonFiniteWeights")


@pytest.mark.usefixtures("direct")
async def test_a_server_that_has_fallen_silent_keeps_one_load_and_others_load_beside_it(
    scene: Callable[..., Scene], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "SILENT_S", 0.0)  # so that every failure counts as waited for
    go_on = threading.Event()

    class Silent(stores.Files):
        def _fault(self) -> bool:
            if NAMES[0] in self.path and not go_on.is_set():
                self.send_error(503)
                return True
            return not go_on.wait(LIMIT_S)

    def wanted(address: str, name: str) -> list[Assignment]:
        return [Assignment(f"{name}/{n}", Source(f"http://{address}/{NAMES[n]}"), Tier.DISK) for n in range(4)]

    here = scene(slots=8, store=None, remote_workers=2)
    with stores.serving(Silent, store) as (away, _), stores.serving(stores.Files, store) as (address, _):
        far = wanted(away, "far")
        here.residency.want(far)
        await until(lambda: any("does not respond" in state.failure_message for state in here.residency.states()))
        near = wanted(address, "near")
        here.residency.want([*far, *near])
        try:
            await until(lambda: all(here.tier(each.adapter) is Tier.DISK for each in near), LIMIT_S)
            assert all(here.tier(each.adapter) is Tier.REMOTE for each in far)
        finally:
            go_on.set()
        await until(lambda: all(here.tier(each.adapter) is Tier.DISK for each in far), LIMIT_S)


def test_an_immediate_failure_is_no_silence_and_an_answer_ends_a_silence() -> None:
    now = [0.0]
    here, source, other = Hosts(lambda: now[0]), Source("https://a.example/x"), Source("https://b.example/x")

    def fail(after_s: float, error: type[MintError] = SourceUnavailable) -> None:
        with suppress(error), here.asking(source):
            now[0] += after_s
            raise error("source", "did not answer")

    with here.asking(source):
        fail(0.1)
        fail(hosts.SILENT_S)
        with pytest.raises(SourceUnavailable, match="waits for https://a"), here.asking(source):
            pass
        with here.asking(other):
            pass
    fail(hosts.SILENT_S)
    fail(hosts.SILENT_S, SourceNotFound)  # an answer, however late
    with here.asking(source), here.asking(source):
        pass


def test_a_silent_hub_is_silent_for_all_owners() -> None:
    """Adapters of hundreds would otherwise take every thread that reads remote sources."""
    now = [0.0]
    here = Hosts(lambda: now[0])
    source, other = (Source(f"hf://{owner}/adapter", "main") for owner in ("acme", "umbrella"))
    with suppress(SourceUnavailable), here.asking(source):
        now[0] += hosts.SILENT_S
        raise SourceUnavailable("source", "did not answer")
    with here.asking(source):
        with pytest.raises(SourceUnavailable, match="waits for hf://, which does not respond"), here.asking(other):
            pass
        with here.asking(Source("s3://umbrella/adapter")):
            pass


@pytest.mark.usefixtures("direct")
async def test_a_remote_adapter_that_comes_after_its_wave_is_loaded(
    scene: Callable[..., Scene], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing notifies an engine of new files in a remote store, as the watch does in a local one."""
    monkeypatch.setattr("mint_engine.residency.copies.FIRST_RETRY_S", 0.02)
    (tmp_path / "shelf").mkdir()
    here = scene(store=None)
    with stores.serving(stores.Files, tmp_path / "shelf") as (address, _):
        here.residency.want([Assignment(NAMES[0], Source(f"http://{address}/late"), Tier.DEVICE)])
        await until(lambda: here.failure(NAMES[0]) == "SourceNotFound")
        shutil.copytree(store / NAMES[0], tmp_path / "shelf" / "late")
        await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    assert here.failure(NAMES[0]) == ""


@pytest.mark.usefixtures("direct")
async def test_a_remote_adapter_that_is_refused_is_loaded_once_it_no_longer_is(
    scene: Callable[..., Scene], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions of a store may come after the wave, too, and no engine has to start again for them."""

    class Guarded(stores.Files):
        def _fault(self) -> bool:
            if self.faults.get("guarded"):
                self.send_error(403)
            return bool(self.faults.get("guarded"))

    monkeypatch.setattr("mint_engine.residency.copies.FIRST_RETRY_S", 0.02)
    here = scene(store=None)
    with stores.serving(Guarded, store) as (address, handler):
        handler.faults["guarded"] = 1
        here.residency.want([Assignment(NAMES[0], Source(f"http://{address}/{NAMES[0]}"), Tier.DEVICE)])
        await until(lambda: here.failure(NAMES[0]) == "SourceForbidden")
        handler.faults.clear()
        await until(lambda: here.tier(NAMES[0]) is Tier.DEVICE)
    assert here.failure(NAMES[0]) == ""


def test_a_silence_without_further_attempts_is_forgotten() -> None:
    """Else every server that was ever silent would cost memory for good."""
    now = [0.0]
    here, source, other = Hosts(lambda: now[0]), Source("https://a.example/x"), Source("https://b.example/x")
    with suppress(SourceUnavailable), here.asking(source):
        now[0] += hosts.SILENT_S
        raise SourceUnavailable("source", "did not answer")
    with here.asking(other):
        now[0] += hosts.FORGET_S
    assert here._silent, "not before its time"
    with here.asking(other):
        now[0] += 1
    assert not here._silent


def test_a_server_stays_silent_while_the_load_that_tries_it_waits() -> None:
    """However long that takes, or many more would wait beside it."""
    now = [0.0]
    here, source, other = Hosts(lambda: now[0]), Source("https://a.example/x"), Source("https://b.example/x")
    with suppress(SourceUnavailable), here.asking(source):
        now[0] += hosts.SILENT_S
        raise SourceUnavailable("source", "did not answer")
    with here.asking(source):
        with here.asking(other):
            now[0] += hosts.FORGET_S + 1
        with pytest.raises(SourceUnavailable, match="waits for https://a"), here.asking(source):
            pass


async def test_a_load_that_waited_in_line_does_not_mark_its_server_silent(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place comes late if much else is being read, from whichever server."""

    def relay(*given: Any) -> None:
        silent.append(len(here.loader._hosts._silent))
        given[3](1)  # takes its place in line
        raise SourceUnavailable("source", "broke off; retrying")

    now, silent = [0.0], list[int]()
    here = scene(slots=1, store=None)
    monkeypatch.setattr(loading, "relay", relay)
    monkeypatch.setattr(here.loader, "_hosts", Hosts(lambda: now[0]))
    monkeypatch.setattr(here.loader, "_read_concurrency", ReadConcurrency(few=1, most_bytes=0))
    with here.loader._read_concurrency.reading(1):
        here.residency.want([Assignment("far", Source("https://a.example/x"), Tier.DISK)])
        await until(lambda: here.loader._read_concurrency._line)
        now[0] += hosts.SILENT_S
    await until(lambda: here.failure("far"))
    assert len(silent) > 1, "it was tried again"
    assert not any(silent)

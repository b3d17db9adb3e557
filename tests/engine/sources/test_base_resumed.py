"""An interrupted copy of a base resumes where it ended if the content is still the same; else it starts over."""

import hashlib
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mint_contracts import backends, errors
from mint_contracts.object_store import object_store
from mint_contracts.records import COPYING
from mint_contracts.source import Source, child
from mint_engine.sources.base_copy import PARTIAL
from mint_engine.sources.fetch_base import cached_base, copied_marks, fetch_base, source_marks
from mint_engine.sources.load_progress import LoadProgress
from tests.engine import stores
from tests.engine.ranged import Ranged

WEIGHTS, SHARDS = "model.safetensors", ("model-1.safetensors", "model-2.safetensors")
BYTES = 20 << 20  # more than two of the blocks that are requested at once


class Killed(BaseException):
    """An exception that no part of the engine catches."""


class Ending(LoadProgress):
    """Ends the copying process, as a signal does, after a number of bytes."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self._left = after

    def moved(self, count: int) -> None:
        super().moved(count)
        self._left -= count
        if self._left <= 0:
            raise Killed


def saved(folder: Path, seed: bytes = b"1") -> Path:
    """Save a base's files, with large weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text("{}")
    (folder / WEIGHTS).write_bytes(seed * BYTES)
    return folder


def fetched(source: Source, cache: Path, progress: LoadProgress | None = None) -> tuple[bytes, int]:
    """The copied weights, and the byte at which copying them began."""
    with capture_logs() as lines:
        path = fetch_base(source, cache, lambda *_: None, progress)
    assert [each.name for each in (cache / "base").iterdir()] == [path.name], "nothing is left beside it"
    assert sorted(each.name for each in path.iterdir()) == ["config.json", WEIGHTS]
    resumed = [line["resumed_at"] for line in lines if line.get("file") == WEIGHTS]
    return (path / WEIGHTS).read_bytes(), sum(resumed)


def test_a_file_whose_answer_is_cut_off_goes_on_where_it_ended(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    base = saved(tmp_path / "base")
    with stores.serving(Ranged, tmp_path) as (address, handler):
        handler.faults["cuts"] = 2
        whole, resumed = fetched(Source(f"http://{address}/base"), tmp_path / "cache")
    assert whole == (base / WEIGHTS).read_bytes()
    assert resumed > 0
    asked = [line for line in handler.seen if line.startswith("bytes=") and line.endswith(WEIGHTS)]
    assert len([line for line in asked if line.startswith("bytes=0-")]) == 1


def test_the_next_attempt_goes_on_where_all_tries_of_the_last_one_ended(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    base = saved(tmp_path / "base")
    with stores.serving(Ranged, tmp_path) as (address, handler):
        source = Source(f"http://{address}/base")
        handler.faults["cuts"] = 3
        with pytest.raises(errors.SourceUnavailable):
            fetch_base(source, tmp_path / "cache", lambda *_: None)
        assert not cached_base(source, tmp_path / "cache").exists(), "what is not whole is not to be seen"
        handler.seen.clear()
        progress = LoadProgress()
        whole, resumed = fetched(source, tmp_path / "cache", progress)
    assert whole == (base / WEIGHTS).read_bytes()
    assert resumed > 0
    assert not [line for line in handler.seen if line.startswith("bytes=0-") and line.endswith(WEIGHTS)]
    found = progress.now
    assert found is not None
    assert (found.phase, found.done, found.total) == (COPYING, BYTES, BYTES)


class Revoking(Ranged):
    """Refuses what lies beyond a file's beginning while "revoked" is among its faults."""

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        if self.faults.get("revoked") and not self.headers.get("Range", "bytes=0-").startswith("bytes=0-"):
            self.send_error(403)
        else:
            super().do_GET()


def test_a_copy_goes_on_once_the_credentials_that_expired_meanwhile_are_replaced(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    base = saved(tmp_path / "base")
    with stores.serving(Revoking, tmp_path) as (address, handler):
        source = Source(f"http://{address}/base")
        handler.faults["revoked"] = 1
        with pytest.raises(errors.SourceForbidden):
            fetch_base(source, tmp_path / "cache", lambda *_: None)
        handler.faults.clear()
        whole, resumed = fetched(source, tmp_path / "cache")
    assert whole == (base / WEIGHTS).read_bytes()
    assert resumed > 0


@pytest.mark.parametrize("scheme", ["http", "s3", "gs", "hf"])
def test_files_copied_by_a_killed_process_are_not_copied_again(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved(tmp_path / "team" / "store" / "base")
    with ExitStack() as stack:
        source = child(stores.opened(scheme, tmp_path, stack, monkeypatch), "base")
        with pytest.raises(Killed):
            fetch_base(source, tmp_path / "cache", lambda *_: None, Ending(BYTES // 2))
        whole, resumed = fetched(source, tmp_path / "cache")
    assert whole == (base / WEIGHTS).read_bytes()
    if scheme == "http":  # Python's own server does not serve ranges
        assert resumed == 0
    else:
        assert resumed >= BYTES // 2


def cut_short(partial: Path) -> None:
    """As after a loss of power: only what was synced is certain to be there."""
    os.truncate(partial / "coming" / WEIGHTS, 1000)


def without_its_mark(partial: Path) -> None:
    (partial / "marks" / WEIGHTS).unlink()


def with_half_a_mark(partial: Path) -> None:
    (partial / "marks" / WEIGHTS).write_text('{"mark": ')


def half_copied(address: str, folder: Path) -> tuple[Source, Path]:
    """A base, and a cache in which a process was killed halfway through copying it."""
    source, cache = Source(f"http://{address}/base"), folder / "cache"
    with pytest.raises(Killed):
        fetch_base(source, cache, lambda *_: None, Ending(BYTES // 2))
    return source, cache


@pytest.mark.parametrize("lose", [cut_short, without_its_mark, with_half_a_mark])
def test_files_of_uncertain_content_are_copied_again(lose: Callable[[Path], None], tmp_path: Path) -> None:
    backends.backend.cache_clear()
    base = saved(tmp_path / "base")
    with stores.serving(Ranged, tmp_path) as (address, _):
        source, cache = half_copied(address, tmp_path)
        target = cached_base(source, cache)
        lose(target.with_name(f"{PARTIAL}{target.name}"))
        assert fetched(source, cache) == ((base / WEIGHTS).read_bytes(), 0)


def test_files_that_have_changed_meanwhile_are_copied_again(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    base = saved(tmp_path / "base")
    with stores.serving(Ranged, tmp_path) as (address, _):
        source, cache = half_copied(address, tmp_path)
        saved(base, b"2")
        assert fetched(source, cache) == ((base / WEIGHTS).read_bytes(), 0)


class Changing(LoadProgress):
    """Changes the source once: while it is copied, or before that, just after it was asked what file `at` holds."""

    def __init__(self, change: Callable[[], object], *, before: bool = False, at: int = 1) -> None:
        super().__init__()
        self._changes, self._before, self._left = [change], before, at

    def already_there(self, count: int) -> None:
        super().already_there(count)
        self._left -= 1
        if self._before and self._changes and not self._left:
            self._changes.pop()()

    def moved(self, count: int) -> None:
        super().moved(count)
        if not self._before and self._changes:
            self._changes.pop()()


def test_no_copy_holds_two_contents(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    base = saved(tmp_path / "base")
    with stores.serving(Ranged, tmp_path) as (address, _):
        progress = Changing(lambda: saved(base, b"2"))
        whole, _ = fetched(Source(f"http://{address}/base"), tmp_path / "cache", progress)
    assert whole == b"2" * BYTES
    found = progress.now
    assert found is not None
    assert (found.done, found.total) == (BYTES, BYTES), "what was made anew is counted once"


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_changed_objects_of_a_bucket_are_not_appended_to_older_ones(
    scheme: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "team" / "store" / "base")
    with ExitStack() as stack:
        source = child(stores.opened(scheme, tmp_path, stack, monkeypatch), "base")
        with pytest.raises(Killed):
            fetch_base(source, tmp_path / "cache", lambda *_: None, Ending(BYTES // 2))
        bucket = object_store(source)
        progress = Changing(lambda: bucket.put(WEIGHTS, b"2" * BYTES), before=before)
        whole, _ = fetched(source, tmp_path / "cache", progress)
        assert whole == b"2" * BYTES
        assert copied_marks(source, tmp_path / "cache") == source_marks(source), "it is noted as what it is"


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_no_copy_has_one_file_of_an_earlier_content_and_one_of_a_later(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, cache = tmp_path / "team" / "store" / "base", tmp_path / "cache"
    base.mkdir(parents=True)
    (base / "config.json").write_text("{}")
    for name in SHARDS:
        (base / name).write_bytes(b"1" * 100)
    with ExitStack() as stack:
        source = child(stores.opened(scheme, tmp_path, stack, monkeypatch), "base")
        bucket = object_store(source)

        def change() -> None:
            for name in SHARDS:
                bucket.put(name, b"2" * 100)

        second = Changing(change, before=True, at=2)
        with pytest.raises(errors.SourceUnavailable, match=f"changed {SHARDS[0]} while the others were copied"):
            fetch_base(source, cache, lambda *_: None, second)
        assert not cached_base(source, cache).exists()
        with capture_logs() as lines:
            path = fetch_base(source, cache, lambda *_: None)
    assert [(path / name).read_bytes() for name in SHARDS] == [b"2" * 100] * 2
    assert [line["file"] for line in lines if line.get("file") in SHARDS] == [SHARDS[0]], "the other one was right"


def test_a_server_that_sends_no_parts_of_files_is_copied_from_at_one_go(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    base = saved(tmp_path / "base")
    with stores.serving(stores.Files, tmp_path) as (address, _):
        whole, _ = fetched(Source(f"http://{address}/base"), tmp_path / "cache")
    assert whole == (base / WEIGHTS).read_bytes()


class Digesting(stores.Hub):
    """Lists the digests of large files, as the hub does."""

    def _entry(self, root: Path, path: str) -> stores.Entry | None:
        found = super()._entry(root, path)
        if found is not None and path.endswith(WEIGHTS):
            told = self.faults.get("digest", 0) and "0" * 64
            digest = told or hashlib.sha256((root / path).read_bytes()).hexdigest()
            found["lfs"] = {"oid": digest, "size": found["size"], "pointerSize": 100}
        return found


def test_a_file_of_another_digest_than_the_hub_lists_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.backend.cache_clear()
    base = saved(tmp_path / "team" / "store" / "base")
    with stores.serving(Digesting, tmp_path) as (address, handler):
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        source, cache = Source("hf://team/store/base", "v1"), tmp_path / "cache"
        handler.faults["digest"] = 1
        with pytest.raises(errors.SourceUnavailable, match=f"sent a {WEIGHTS} of another digest than it lists"):
            fetch_base(source, cache, lambda *_: None)
        handler.faults.clear()
        backends.backend.cache_clear()  # the hub library's cache of a commit
        with pytest.raises(Killed):
            fetch_base(source, cache, lambda *_: None, Ending(BYTES // 2))
        whole, resumed = fetched(source, cache)
    assert whole == (base / WEIGHTS).read_bytes()
    assert resumed >= BYTES // 2
    backends.backend.cache_clear()

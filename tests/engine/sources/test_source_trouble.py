"""Storage, disks and memory that fail for a while are tried again; permanent failures are reported."""

import errno
import os
import shutil
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import pytest
import torch

from mint_contracts import backends, errors
from mint_contracts.source import Source, child
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.sources import storage, web_stream
from mint_engine.sources.fetch import CONFIG, WEIGHTS
from mint_engine.sources.fetch_base import fetch_base
from mint_engine.sources.storage import folder_of
from tests.engine import stores
from tests.engine.made import peft_adapter, read_tiny, tiny_fit
from tests.engine.tiers import loader
from tests.redis_process import free_port


@pytest.mark.parametrize("scheme", ["http", "s3", "hf"])
def test_storage_that_does_not_answer_is_tried_again_later(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backends.backend.cache_clear()
    address = f"http://127.0.0.1:{free_port()}"
    for variable in ("AWS_ENDPOINT_URL", "HF_ENDPOINT"):
        monkeypatch.setenv(variable, address)
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "TOPSECRET")
    monkeypatch.setenv("HF_TOKEN", "TOPSECRET")
    source = {"http": Source(f"{address}/a/b"), "s3": Source("s3://a/b"), "hf": Source("hf://a/b", "v1")}[scheme]
    with pytest.raises(errors.SourceUnavailable) as caught:
        read_adapter(folder_of(source), tiny_fit(), torch.float32)
    assert not caught.value.terminal
    assert "TOPSECRET" not in str(caught.value)


def test_a_short_disturbance_is_outlived(shelf: Path, tmp_path: Path) -> None:
    backends.backend.cache_clear()
    with stores.serving(stores.Files, shelf) as (address, handler):
        handler.faults |= {WEIGHTS: 3, CONFIG: 1}
        source = Source(f"http://{address}/team/store/acme/good")
        here = loader(tmp_path)
        here.load(source)
        assert handler.faults == {WEIGHTS: 0, CONFIG: 0}


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("scheme", ["file", "http", "s3", "gs"])
def test_files_of_which_one_is_overwritten_while_they_are_read_are_not_mixed(
    scheme: str, name: str, opened: Callable[[str], Source], shelf: Path, tmp_path: Path
) -> None:
    folder, other = shelf / f"team/store/mixed-{scheme}-{name}", tmp_path / "other"
    shutil.copytree(shelf / "team/store/acme/good", folder)
    peft_adapter(other, seed=1, lora_alpha=16)
    source = child(opened(scheme), folder.name)

    def overwrite(_nbytes: int) -> None:
        content = (other / name).read_bytes()
        if scheme in {"file", "http"}:
            (folder / name).write_bytes(content)
            os.utime(folder / name, (1, 1))
        else:
            backends.backend(scheme).files.pipe_file(f"{stores.BUCKET}/team/store/{folder.name}/{name}", content)

    with pytest.raises(errors.SourceUnavailable, match=f"changed {name} while it was read"):
        read_adapter(folder_of(source), tiny_fit(), torch.float32, overwrite)
    read_adapter(folder_of(source), tiny_fit(), torch.float32)


def test_a_web_server_that_sends_no_parts_of_files_is_read_from_as_they_come(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.backend.cache_clear()
    monkeypatch.setattr(storage, "BLOCK_BYTES", 100)
    monkeypatch.setattr(web_stream, "PIECE_BYTES", 30)
    with stores.serving(stores.Files, shelf) as (address, _):
        found = loader(tmp_path).load(Source(f"http://{address}/team/store/acme/good"))
    assert found.revision == read_tiny(shelf / "team/store/acme/good").revision


@pytest.mark.parametrize("told", ["bytes 1-{last}/{size}", "bytes 0-{size}/{size}", "bytes */{size}", ""])
def test_a_part_that_was_not_asked_for_is_not_taken_for_the_one_that_was(told: str, shelf: Path) -> None:
    class Confused(stores.Files):
        def do_GET(self) -> None:  # noqa: N802
            body = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(206)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Range", told.format(last=len(body) - 1, size=len(body)))
            self.end_headers()
            self.wfile.write(body)

    backends.backend.cache_clear()
    with stores.serving(Confused, shelf) as (address, _), pytest.raises(errors.SourceUnavailable) as caught:
        read_adapter(folder_of(Source(f"http://{address}/team/store/acme/good")), tiny_fit(), torch.float32)
    assert not caught.value.terminal


@pytest.mark.parametrize("whole", [True, False], ids=["a whole file's status", "a part's status"])
def test_a_range_that_is_too_short_is_refused(shelf: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> None:
    class Stingy(stores.Files):
        def do_GET(self) -> None:  # noqa: N802
            if not self.path.endswith(WEIGHTS):
                super().do_GET()
                return
            self._fault()
            body = Path(self.translate_path(self.path)).read_bytes()
            first, asked = (int(each) for each in self.headers["Range"].removeprefix("bytes=").split("-"))
            part = body[first : min(asked + 1, first + 12)]
            self.send_response(200 if whole else 206)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(body)}")
            self.end_headers()
            self.wfile.write(part)

        def end_headers(self) -> None:
            self.send_header("Accept-Ranges", "bytes")
            super().end_headers()

    backends.backend.cache_clear()
    monkeypatch.setattr(storage, "BLOCK_BYTES", 100)
    with stores.serving(Stingy, shelf) as (address, handler), pytest.raises(errors.SourceUnavailable) as caught:
        read_adapter(folder_of(Source(f"http://{address}/team/store/acme/good")), tiny_fit(), torch.float32)
    assert not caught.value.terminal
    assert len(handler.seen) < 20, "a file comes in pieces of a few bytes"


def test_a_forbidden_source_is_a_terminal_failure(shelf: Path, tmp_path: Path) -> None:
    backends.backend.cache_clear()
    with stores.serving(stores.Files, shelf) as (address, _), pytest.raises(errors.SourceForbidden) as caught:
        loader(tmp_path).load(Source(f"http://{address}/private/adapter"))
    assert caught.value.terminal


def test_files_that_a_bucket_refuses_as_they_do_not_exist_are_not_needed(shelf: Path, tmp_path: Path) -> None:
    """S3 and Google's answer with 403 in place of 404 to whoever may read objects, but not list them."""

    class Unlisted(stores.Files):
        def send_error(self, code: int, *how: str | None) -> None:
            super().send_error(HTTPStatus.FORBIDDEN if code == HTTPStatus.NOT_FOUND else code, *how)

    backends.backend.cache_clear()
    with stores.serving(Unlisted, shelf) as (address, _):
        here, there = loader(tmp_path), f"http://{address}/team/store/acme"
        assert here.load(Source(f"{there}/good")).rank == 4
        with pytest.raises(errors.SourceForbidden, match="HTTP 403"):
            here.load(Source(f"{there}/nobody"))


def refusing(name: str) -> type[stores.Files]:
    """Return a web server that refuses one name, and answers with 404 to what does not exist."""

    class Refusing(stores.Files):
        def _fault(self) -> bool:
            if self.path.endswith(name):
                self.send_error(HTTPStatus.FORBIDDEN)
            return self.path.endswith(name) or super()._fault()

    return Refusing


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_file_that_is_refused_where_absent_ones_are_not_is_not_taken_for_absent(
    name: str, shelf: Path, tmp_path: Path
) -> None:
    backends.backend.cache_clear()
    refused = pytest.raises(errors.SourceForbidden, match="HTTP 403")
    with stores.serving(refusing(name), shelf) as (address, _), refused:
        loader(tmp_path).load(Source(f"http://{address}/team/store/acme/good"))


def test_a_base_of_which_a_file_is_refused_is_not_copied_without_it(shelf: Path, tmp_path: Path) -> None:
    """The copy would stay in the cache."""
    backends.backend.cache_clear()
    refused = pytest.raises(errors.SourceForbidden, match="HTTP 403")
    with stores.serving(refusing("generation_config.json"), shelf) as (address, _), refused:
        fetch_base(Source(f"http://{address}/team/store/base"), tmp_path, lambda *_: None)


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errors.Overloaded),
        (OSError(errno.EIO, "Input/output error"), errors.SourceUnavailable),
        (MemoryError(), errors.Overloaded),
    ],
)
def test_an_error_of_the_engines_own_disk_or_memory_is_not_the_adapters_fault(
    trouble: Exception, told: type[errors.MintError], shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(packed: Packed, descriptor: int) -> None:
        os.write(descriptor, b"half")
        raise trouble

    here, source = loader(tmp_path), Source(f"file://{shelf}/team/store/acme/good")
    with monkeypatch.context() as broken:
        broken.setattr(packed_file, "write_at_once", write)
        with pytest.raises(errors.MintError) as caught:
            here.load(source)
    assert type(caught.value) is told
    assert not caught.value.terminal
    assert list((tmp_path / "disk").iterdir()) == []
    assert here.load(source).rank == 4


def test_a_file_that_can_not_be_mapped_now_is_tried_again_later(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, *, shared: bool, nbytes: int) -> None:
        raise RuntimeError(f"unable to mmap {nbytes} bytes from file <{name}>: Cannot allocate memory (12)")

    monkeypatch.setattr("mint_engine.adapters.mapped.MAP_FROM_BYTES", 0)
    here, source = loader(tmp_path), Source(f"file://{shelf}/team/store/acme/good")
    with monkeypatch.context() as full:
        full.setattr(torch.UntypedStorage, "from_file", refuse)
        with pytest.raises(errors.SourceUnavailable, match="Cannot allocate memory") as caught:
            here.load(source)
    assert not caught.value.terminal
    assert here.load(source).rank == 4


def test_a_server_that_hangs_up_early_is_tried_again() -> None:
    backends.backend.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        source = Source(f"http://127.0.0.1:{listener.getsockname()[1]}/a")

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(errors.SourceUnavailable):
            read_adapter(folder_of(source), tiny_fit(), torch.float32)

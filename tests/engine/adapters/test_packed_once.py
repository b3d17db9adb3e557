"""A loaded adapter is packed once, onto the engine's disk, and again only if its source or the disk has changed."""

import errno
import hashlib
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from io import FileIO
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mint_contracts import errors
from mint_contracts.source import Source
from mint_engine.adapters import mapped
from mint_engine.adapters.check import Fit
from mint_engine.adapters.file_identity import Identity, identity_of
from mint_engine.adapters.packed import Header, bytes_of, fingerprint
from mint_engine.adapters.packed_file import head_of
from mint_engine.adapters.read import read_adapter
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.loading import Loader
from mint_engine.sources.copying import folder_name
from mint_engine.sources.fetch import WEIGHTS
from mint_engine.sources.local import LocalFolder
from tests.engine.made import (
    BASE_NAME,
    edit_config,
    edit_tensors,
    lora_names,
    packed_source,
    peft_adapter,
    read_tiny,
    tiny_fit,
)
from tests.engine.tiers import loader
from tests.waiting import PATIENCE_S


def test_a_local_source_is_packed_once_and_anew_when_it_has_changed(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "a")
    here, source = loader(tmp_path), Source(f"file://{tmp_path}/a")
    first = here.load(source)
    (only,) = (tmp_path / "disk").iterdir()
    written = only.stat()
    assert here.load(source).revision == first.revision == read_tiny(tmp_path / "a").revision
    assert only.stat() == written, "no second time"
    name = lora_names(tmp_path / "a")[0]
    edit_tensors(tmp_path / "a", {name: load_file(tmp_path / "a" / WEIGHTS)[name] * 2})
    assert here.load(source).revision == read_tiny(tmp_path / "a").revision != first.revision
    assert len(list((tmp_path / "disk").iterdir())) == 1, "what it was is gone"
    edit_config(tmp_path / "a", lora_alpha=1)
    assert here.load(source).revision == read_tiny(tmp_path / "a").revision
    packed_source(tmp_path / "a", first)
    assert here.load(source).revision == first.revision, "a packed file is taken before PEFT's"
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(errors.SourceNotFound):
        here.load(source)


def test_a_restart_finds_what_was_packed_and_another_base_does_not(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "a")
    source = Source(f"file://{tmp_path}/a")
    first = loader(tmp_path).load(source)
    (only,) = (tmp_path / "disk").iterdir()
    os.utime(only, ns=(7, 7))
    assert loader(tmp_path).load(source).revision == first.revision
    assert only.stat().st_mtime_ns == 7, "it was not written anew"
    again = loader(tmp_path)
    assert again.held(source, again.state(source)) is None, "not before its digest has been checked, which takes long"
    again.load(source)
    held = again.held(source, again.state(source))
    assert held is not None
    assert held.revision == first.revision
    halved = Loader(DiskTier(tmp_path / "disk", 1 << 20), tiny_fit(), torch.bfloat16)
    assert (
        halved.load(source).revision
        == read_adapter(LocalFolder(tmp_path / "a", "a"), tiny_fit(), torch.bfloat16).revision
    )
    assert not only.exists()


@pytest.mark.parametrize(
    ("fit", "told"),
    [(tiny_fit(base_names=("acme/other",)), errors.WrongBase), (tiny_fit(max_rank=2), errors.RankTooLarge)],
)
def test_packed_files_are_checked_against_the_bases_limits_after_a_restart(
    fit: Fit, told: type[errors.MintError], tmp_path: Path
) -> None:
    peft_adapter(tmp_path / "a")
    source = Source(f"file://{tmp_path}/a")
    loader(tmp_path).load(source)
    narrowed = Loader(DiskTier(tmp_path / "disk", 1 << 20), fit, torch.float32)
    assert narrowed.held(source, narrowed.state(source)) is None
    with pytest.raises(told):
        narrowed.load(source)
    with pytest.raises(told):  # now that its digest has been checked
        narrowed.held(source, narrowed.state(source))
    named = Loader(DiskTier(tmp_path / "disk", 1 << 20), tiny_fit(base_names=(BASE_NAME,)), torch.float32)
    assert named.load(source).rank == 4


def test_files_packed_before_format_2_are_not_fetched_again(tmp_path: Path) -> None:
    """An engine whose disk survives an upgrade keeps using what is on it, even if no source can be reached."""
    peft_adapter(tmp_path / "a")
    source, packed = Source("https://nobody.invalid/a"), read_tiny(tmp_path / "a")
    header = replace(packed.header, digest=hashlib.sha256(bytes_of(packed.run)).hexdigest())
    identity = hashlib.sha256(f"torch.float32 {fingerprint(tiny_fit().modules)} 1".encode()).hexdigest()[:16]
    kept = tmp_path / "disk" / f"{folder_name(source)}-{identity}.mint"
    kept.parent.mkdir()
    kept.write_bytes(head_of(header) + bytes(bytes_of(packed.run)))
    loaded = loader(tmp_path).load(source)
    assert torch.equal(loaded.run, packed.run)
    assert loaded.header.digest == header.digest


def test_a_cached_file_that_broke_is_packed_anew(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "a")
    source = Source(f"file://{tmp_path}/a")
    first = loader(tmp_path).load(source)
    (only,) = (tmp_path / "disk").iterdir()
    blob = bytearray(only.read_bytes())
    blob[-5] ^= 1
    only.write_bytes(blob)
    assert loader(tmp_path).load(source).revision == first.revision
    only.write_bytes(blob[:100])
    assert loader(tmp_path).load(source).revision == first.revision


def load_with_a_lost_block(folder: Path, source: Source) -> str:
    """Return the revision that a new process loads when mapped blocks of the cached file can no longer be read.

    As with a failing disk: the file is truncated after it was checked, and pages beyond a file's end cannot be read.
    """
    (only,) = (folder / "disk").iterdir()
    looks: list[Identity] = []

    def look(about: os.stat_result) -> Identity:
        looks.append(identity_of(about))
        if len(looks) == 2:
            os.truncate(only, 0)
        return looks[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mapped, "MAP_FROM_BYTES", 0)
        patched.setattr(mapped, "identity_of", look)
        return loader(folder).load(source).revision


def test_a_cached_file_of_which_a_block_is_lost_is_packed_anew_and_ends_nobody(tmp_path: Path) -> None:
    peft_adapter(tmp_path / "a")
    source = Source(f"file://{tmp_path}/a")
    first = loader(tmp_path).load(source)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as another:
        assert another.submit(load_with_a_lost_block, tmp_path, source).result(PATIENCE_S) == first.revision
    assert loader(tmp_path).load(source).revision == first.revision


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT])
def test_a_cached_file_that_can_not_be_read_is_packed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    peft_adapter(tmp_path / "a")
    source = Source(f"file://{tmp_path}/a")
    first, read_header, failures = loader(tmp_path).load(source), mapped._read_header, [1]

    def failing(file: FileIO, file_bytes: int, subject: str) -> Header:
        if failures[0]:
            failures[0] -= 1
            raise OSError(code, os.strerror(code))
        return read_header(file, file_bytes, subject)

    monkeypatch.setattr(mapped, "_read_header", failing)
    again = loader(tmp_path)
    assert again.load(source).revision == first.revision
    failures[0] = 2
    with pytest.raises(errors.SourceUnavailable, match="cannot be read back") as caught:
        loader(tmp_path).load(source)
    assert not caught.value.terminal

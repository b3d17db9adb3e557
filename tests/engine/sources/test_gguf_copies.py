"""A remote GGUF file is checked by its head before all of it is copied."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mint_contracts import errors
from mint_contracts.source import Source, child
from mint_engine.model.files import find_files
from mint_engine.preflight import check_small_files
from mint_engine.sources.fetch_base import fetch_base
from mint_engine.sources.gguf_head import read_head
from mint_engine.sources.load_progress import LoadProgress
from tests.engine.ggufs import write
from tests.engine.running import settings_for

REMOTE = ("http", "s3", "gs", "hf")


class Untold(LoadProgress):
    """Fails if a copy begins."""

    def begin(self, what: str, total: int) -> None:
        raise AssertionError(f"{what} {total} bytes")


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """A shelf with an empty team/store/base, which each test fills."""
    root = tmp_path / "shelf"
    (root / "team" / "store" / "base").mkdir(parents=True)
    (root / "private").mkdir()
    return root


@pytest.fixture
def store(shelf: Path) -> Path:
    return shelf / "team" / "store" / "base"


# A web server lists no files, so the URI names one.
@pytest.mark.parametrize(
    ("scheme", "within"), [*((scheme, "base/tiny.gguf") for scheme in REMOTE), ("s3", "base"), ("hf", "base")]
)
def test_a_gguf_file_that_can_not_be_served_is_refused_before_it_is_copied(
    scheme: str, within: str, store: Path, opened: Callable[[str], Source], tmp_path: Path
) -> None:
    refusals: dict[str, tuple[type[errors.MintError], Callable[[Path], object]]] = {
        "unsupported configuration": (errors.UnsupportedBase, partial(write, architecture="own")),
        "`num_hidden_layers` is 1000000000": (errors.UnsupportedBase, partial(write, layers=10**9)),
        "the base has 64 positions": (errors.UnsupportedBase, write),
        "does not start like a GGUF file": (errors.CorruptFile, lambda path: path.write_bytes(b"PK" * 4000)),
        "ends within its head": (errors.CorruptFile, lambda path: path.write_bytes(b"GGUF\x03\0\0\0" * 2)),
    }
    for says, (error, make) in refusals.items():
        make(store / "tiny.gguf")
        source, look = child(opened(scheme), within), partial(check_small_files, settings_for(tmp_path))
        with pytest.raises(error, match=says) as caught:
            fetch_base(source, tmp_path / "cache", look, Untold())
        assert str(caught.value).startswith(("source ", "contextLength"))
        assert list((tmp_path / "cache" / "base").iterdir()) == []


@pytest.mark.parametrize("scheme", REMOTE)
def test_what_is_looked_at_is_as_long_as_the_file_and_the_copy_is_whole(
    scheme: str, store: Path, opened: Callable[[str], Source], tmp_path: Path
) -> None:
    head, looks = write(store / "tiny.gguf"), list[tuple[list[str], bytes]]()
    (store / "tokenizer.json").write_text("{}")

    def look(folder: Path, _: str) -> None:
        looks.append((sorted(each.name for each in folder.iterdir()), (folder / "tiny.gguf").read_bytes()))

    truth, single = (store / "tiny.gguf").read_bytes(), scheme == "http"
    path = fetch_base(child(opened(scheme), "base/tiny.gguf" if single else "base"), tmp_path / "cache", look)
    assert (path if single else path / "tiny.gguf").read_bytes() == truth
    [(names, seen)] = looks
    assert names == (["tiny.gguf"] if single else ["tiny.gguf", "tokenizer.json"])
    assert len(seen) == len(truth)
    assert seen[:head] == truth[:head]
    assert seen[-(1 << 20) :] == bytes(1 << 20), "weights are not looked at"


def test_a_head_is_read_to_its_end_and_not_behind_it(tmp_path: Path) -> None:
    head = write(tmp_path / "tiny.gguf")
    whole = (tmp_path / "tiny.gguf").read_bytes()
    assert read_head(io.BytesIO(whole[:head]), "x") == whole[:head]
    for short in (3, 7, 20, head // 2, head - 1):
        with pytest.raises(errors.CorruptFile, match=f"x: ends within its head, after {short} bytes"):
            read_head(io.BytesIO(whole[:short]), "x")


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (b"\x01" + bytes(7) + b"\xff" * 8, "a head of more than 268435456 bytes"),  # a name
        (b"\x01" + bytes(7) + bytes(8) + b"\x63\0\0\0", "a value of the unknown kind 99"),
        (b"\x01" + bytes(7) + bytes(8) + b"\x09\0\0\0\x08\0\0\0" + b"\xff" * 8, "more than 2,097,152 values"),
        (
            b"\x01" + bytes(7) + bytes(8) + b"\x09\0\0\0\0\0\0\0" + (3 << 20).to_bytes(8, "little") + bytes(3 << 20),
            "more than 2,097,152 values",
        ),
        (b"\x01" + bytes(7) + bytes(8) + b"\x09\0\0\0\x09\0\0\0" + b"\xff" * 8, "a value of the unknown kind 9"),
        (b"\x01" + bytes(7) + bytes(8) + b"\x09\0\0\0\x0a\0\0\0" + b"\xff" * 8, "a head of more than"),
    ],
)
def test_a_head_without_end_is_not_read(head: bytes, says: str) -> None:
    with pytest.raises(errors.CorruptFile, match=says):
        read_head(io.BytesIO(b"GGUF\x03\0\0\0" + bytes(8) + head + bytes(100)), "x")


@pytest.mark.parametrize("scheme", REMOTE)
def test_weights_without_a_configuration_are_refused_by_the_names_alone(
    scheme: str, store: Path, opened: Callable[[str], Source], tmp_path: Path
) -> None:
    (store / "model.safetensors").write_bytes(bytes(8))
    (store / "tokenizer.json").write_text("{}")
    with pytest.raises(errors.CorruptFile, match=r"base'.*: holds no config\.json"):
        fetch_base(child(opened(scheme), "base"), tmp_path / "cache", lambda *_: None)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("scheme", REMOTE[1:])  # a web server lists no names
def test_several_files_are_refused_alike_by_remote_and_local_sources(
    scheme: str, store: Path, opened: Callable[[str], Source], tmp_path: Path
) -> None:
    for name in ("one.gguf", "two.gguf"):
        write(store / name)
    says = r"holds 2 \.gguf files; name the one to serve in the URI \(one\.gguf, two\.gguf\)"
    with pytest.raises(errors.UnsupportedBase, match=says):
        fetch_base(child(opened(scheme), "base"), tmp_path / "cache", lambda *_: None, Untold())
    with pytest.raises(errors.UnsupportedBase, match=says):
        find_files(store)  # as for a base that is read in place

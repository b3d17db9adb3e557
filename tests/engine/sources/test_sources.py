"""Every scheme of sources, against a real server: what exists is fetched, what does not raises one error."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mint_contracts import backends, errors
from mint_contracts.source import Source, child
from mint_engine.adapters.read import read_adapter
from mint_engine.sources.fetch import CONFIG, WEIGHTS
from mint_engine.sources.fetch_base import fetch_base
from mint_engine.sources.load_progress import LoadProgress
from mint_engine.sources.local import LocalFolder
from mint_engine.sources.storage import folder_of
from tests.engine import stores
from tests.engine.made import peft_adapter, read_tiny, tiny_fit
from tests.engine.tiers import loader

SCHEMES = ("file", "pvc", "http", "s3", "lengthless s3", "gs", "hf")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_adapter_is_fetched_checked_and_read(
    scheme: str, opened: Callable[[str], Source], shelf: Path, tmp_path: Path
) -> None:
    store, here = opened(scheme), loader(tmp_path)
    source = child(store, "acme/good")
    packed = here.load(source)
    truth = read_tiny(shelf / "team/store/acme/good")
    assert packed.revision == truth.revision
    assert torch.equal(packed.run, truth.run)
    assert here.disk.ledger.used == packed.nbytes == (only := next((tmp_path / "disk").iterdir())).stat().st_size
    assert here.load(source).revision == packed.revision
    assert [only] == list((tmp_path / "disk").iterdir()), "the second time it is there already"

    for name, error in {
        "acme/absent": errors.SourceNotFound,
        "acme/pickled": errors.UnsafeFormat,
        "acme/only-pickled": errors.UnsafeFormat,
        "acme/cut": errors.CorruptFile,
        "acme/high": errors.RankTooLarge,
    }.items():
        with pytest.raises(errors.MintError) as caught:
            here.load(child(store, name))
        assert type(caught.value) is error, (name, caught.value)
        assert not here.disk.holds(child(store, name))
    assert [only] == list((tmp_path / "disk").iterdir()), "nothing remains of what failed"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_base_is_fetched_whole_and_without_what_nobody_reads_of_it(
    scheme: str, opened: Callable[[str], Source], shelf: Path, tmp_path: Path
) -> None:
    looks: list[list[str]] = []

    def look(folder: Path, _: str) -> None:
        looks.append(sorted(each.name for each in folder.iterdir()))

    store, truth = opened(scheme), shelf / "team" / "store" / "base"
    assert (truth / "consolidated.safetensors").exists()
    shards = sorted(each.name for each in truth.glob("model-*.safetensors"))
    assert len(shards) > 1
    progress = LoadProgress()
    path = fetch_base(child(store, "base"), tmp_path, look, progress)
    for name in [*shards, "config.json", "model.safetensors.index.json"]:
        assert (path / name).read_bytes() == (truth / name).read_bytes()
    if scheme not in {"file", "pvc"}:
        assert not (path / "pytorch_model.bin").exists()
        assert not (path / "consolidated.safetensors").exists()
        assert not list(path.glob("*.gguf"))
        assert progress.now
        assert progress.now.total in {0, sum((truth / shard).stat().st_size for shard in shards)}
        assert path == fetch_base(child(store, "base"), tmp_path, look), "the second time it is there already"

        assert looks == [["config.json", "generation_config.json", "model.safetensors.index.json"]]

    named = fetch_base(child(store, "base/tiny-q4.gguf"), tmp_path, look)
    assert named.read_bytes() == (truth / "tiny-q4.gguf").read_bytes()
    gguf = fetch_base(child(store, "gguf/tiny.gguf"), tmp_path, look)
    assert gguf.read_bytes().startswith(b"GGUF")
    with pytest.raises(errors.SourceNotFound):
        fetch_base(child(store, "gguf/absent.gguf"), tmp_path, look)
    with pytest.raises(errors.SourceNotFound):
        fetch_base(child(store, "absent"), tmp_path, look)
    if scheme not in {"file", "pvc"}:
        with pytest.raises(errors.UnsafeFormat):
            fetch_base(child(store, "pickles"), tmp_path, look)


def test_https_is_trusted_by_its_authority_alone(shelf: Path, tmp_path: Path) -> None:
    context, authority = stores.self_signed(tmp_path)
    code = (
        "import sys, json; from pathlib import Path; from mint_contracts.source import Source; "
        "from mint_contracts.errors import MintError; from mint_engine.sources.fetch_base import fetch_base\n"
        "try: print(fetch_base(Source(sys.argv[1]), Path(sys.argv[2]), lambda *_: None))\n"
        "except MintError as error: print(error.reason)"
    )
    with stores.serving(stores.Files, shelf, context) as (address, _):

        def fetch(cache: str, **environment: str) -> str:
            command = [sys.executable, "-c", code, f"https://{address}/team/store/base", str(tmp_path / cache)]
            done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)
            return done.stdout.splitlines()[-1]  # after the log's lines

        assert fetch("untrusted") == "SourceUnavailable"
        path = Path(fetch("trusted", SSL_CERT_FILE=str(authority)))
    assert json.loads((path / "config.json").read_text())["model_type"] == "llama"


def test_tensors_are_not_asked_for_before_the_header_was_checked(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    peft_adapter(tmp_path / "wide", r=16, target_modules="all-linear")
    with stores.serving(stores.Files, tmp_path) as (address, _):
        asked: list[int] = []
        wide = folder_of(Source(f"http://{address}/wide"))
        with pytest.raises(errors.RankTooLarge):
            read_adapter(wide, tiny_fit(max_rank=8), torch.float32, asked.append)
        assert asked == []


def test_a_branch_is_pinned_to_the_commit_that_it_names(
    shelf: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backends.backend.cache_clear()
    with stores.serving(stores.Hub, shelf) as (address, handler):
        monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
        loader(tmp_path).load(Source("hf://team/store/acme/good", "main"))
        asked = [line for line in handler.seen if "/resolve/" in line or "/tree/" in line]
        assert asked
        assert all(stores.COMMIT in line for line in asked)
        with pytest.raises(errors.SourceNotFound):
            loader(tmp_path).load(Source("hf://team/store/acme/good", "no-such-branch"))


@pytest.mark.parametrize("name", ["link", "deep"])
def test_links_out_of_a_claim_are_refused(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "claims" / "mine").mkdir(parents=True)
    peft_adapter(tmp_path / "theirs")
    if name == "link":
        (tmp_path / "claims" / "mine" / "link").symlink_to(tmp_path / "theirs")
    else:
        shutil.copytree(tmp_path / "theirs", tmp_path / "claims" / "mine" / "deep")
        (tmp_path / "claims" / "mine" / "deep" / WEIGHTS).unlink()
        (tmp_path / "claims" / "mine" / "deep" / WEIGHTS).symlink_to(tmp_path / "theirs" / WEIGHTS)
    monkeypatch.setenv("MINT_PVC_ROOT", str(tmp_path / "claims"))
    with pytest.raises(errors.SourceForbidden, match="symbolic link"):
        loader(tmp_path).load(Source(f"pvc://mine/{name}"))


@pytest.mark.parametrize("scheme", ["pvc", "file"])
def test_a_folder_that_becomes_a_link_while_a_file_is_opened_leads_nowhere(
    scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    claims, resolve = tmp_path / "claims", LocalFolder.resolve
    mine, theirs = claims / "mine" / "x", claims / "theirs" / "private"
    peft_adapter(mine)
    shutil.copytree(mine, theirs)
    monkeypatch.setenv("MINT_PVC_ROOT", str(claims))
    folder = folder_of(Source("pvc://mine/x" if scheme == "pvc" else f"file://{mine}"))

    def exchange(self: LocalFolder, name: str) -> Path:
        found = resolve(self, name)
        mine.rename(claims / "mine" / "before")
        mine.symlink_to(theirs)
        return found

    with monkeypatch.context() as raced:
        raced.setattr(LocalFolder, "resolve", exchange)
        with pytest.raises(errors.SourceUnavailable, match="moved"), folder.open(WEIGHTS):
            pass
    with pytest.raises(errors.SourceForbidden, match="symbolic link"), folder.open(WEIGHTS):
        pass


def test_links_inside_a_claim_are_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    claim = tmp_path / "claims" / "mine"
    peft_adapter(claim / "versions" / "7")
    (claim / "current").symlink_to("versions/7")
    monkeypatch.setenv("MINT_PVC_ROOT", str(tmp_path / "claims"))
    assert loader(tmp_path).load(Source("pvc://mine/current")).rank == 4


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_neither_a_bucket_nor_a_folder_in_it_is_listed_for_one_adapter(
    scheme: str, opened: Callable[[str], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may have a million adapters, and an adapter's folder as many other files; names may be mistyped."""
    store, files = opened(scheme), backends.backend(scheme).files
    folder = f"{stores.BUCKET}/team/store/acme"
    files.pipe({f"{folder}/{name}": b"x" for name in ("good/notes.txt", "good/logs/1.txt", "adapter-2/1.txt")})
    listed = set[str]()
    lister = "_lsdir" if scheme == "s3" else "_list_objects"

    whole = getattr(type(files), lister)

    async def noted(self: object, path: str, *given: object, **named: object) -> list[dict[str, str]]:
        found: list[dict[str, str]] = await whole(self, path, *given, **named)
        listed.update(each["name"] for each in found)
        return found

    monkeypatch.setattr(type(files), lister, noted)
    assert read_adapter(folder_of(child(store, "acme/good")), tiny_fit(), torch.float32).rank == 4
    for absent in ("acme/mistyped", "acme"):
        with pytest.raises(errors.SourceNotFound):
            read_adapter(folder_of(child(store, absent)), tiny_fit(), torch.float32)
    assert listed == {f"{folder}/good/{name}" for name in (CONFIG, WEIGHTS)}


def test_an_adapters_folder_is_not_listed(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its owner may have put millions of files into it."""

    def listed(*_: object) -> None:
        raise AssertionError("was listed")

    monkeypatch.setattr(os, "listdir", listed)
    monkeypatch.setattr(os, "scandir", listed)
    folder = folder_of(Source(f"file://{shelf}/team/store/acme/good"))
    assert read_adapter(folder, tiny_fit(), torch.float32).rank == 4


def test_a_claim_that_is_not_mounted_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINT_PVC_ROOT", str(tmp_path))
    with pytest.raises(errors.SourceForbidden, match="volumeClaims"):
        loader(tmp_path).load(Source("pvc://elsewhere/a"))


def test_a_cache_that_is_too_small_is_reported_with_numbers(opened: Callable[[str], Source], tmp_path: Path) -> None:
    source = child(opened("http"), "acme/good")
    with pytest.raises(errors.CapacityExceeded, match="of a disk cache of 999"):
        loader(tmp_path, budget=999).load(source)

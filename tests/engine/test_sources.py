"""Every scheme that a source may have, against a real server: what is there is fetched, what is not has one error."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from msgspec.structs import replace

from mint_contracts import backends, errors
from mint_contracts.source import Source, child
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.beforehand import check_small_files
from mint_engine.environment import Start
from mint_engine.parallel import worker
from mint_engine.parallel.worker import find_base
from mint_engine.residency.disk import DiskTier
from mint_engine.residency.loading import Loader
from mint_engine.sources.fetch import CONFIG, WEIGHTS
from mint_engine.sources.fetch_base import drop_base, fetch_base
from mint_engine.sources.storage import folder_of
from tests.engine import stores
from tests.engine.made import edit_config, peft_adapter, read_tiny, tiny_fit, tiny_llama
from tests.engine.running import save_base, settings_for
from tests.redis_process import free_port

SCHEMES = ("file", "pvc", "http", "s3", "gs", "hf")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """team/store/...: adapters good and broken, and two bases."""
    root = tmp_path_factory.mktemp("shelf")
    store = root / "team" / "store"
    peft_adapter(store / "acme" / "good")
    (store / "acme" / "pickled").mkdir()
    (store / "acme" / "pickled" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    shutil.copy(store / "acme" / "good" / CONFIG, store / "acme" / "pickled" / CONFIG)
    shutil.copytree(store / "acme" / "good", store / "acme" / "cut")
    cut = store / "acme" / "cut" / WEIGHTS
    cut.write_bytes(cut.read_bytes()[:-10])
    shutil.copytree(store / "acme" / "good", store / "acme" / "high")
    edit_config(store / "acme" / "high", r=99)
    tiny_llama().save_pretrained(store / "base", max_shard_size="30KB")
    (store / "base" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (store / "base" / "consolidated.safetensors").write_bytes(bytes(100))  # the same, for its maker's own code
    (store / "gguf").mkdir()
    (store / "gguf" / "tiny.gguf").write_bytes(b"GGUF" + bytes(100))
    (store / "pickles").mkdir()
    (store / "pickles" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (root / "private").mkdir()
    return root


@pytest.fixture
def opened(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Source]]:
    """`opened(scheme)` starts that scheme's server over the shelf; the source is the shelf's store."""
    with ExitStack() as stack:

        def open_store(scheme: str) -> Source:
            backends.backend.cache_clear()
            for variable in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
                monkeypatch.delenv(variable, raising=False)
            if scheme == "file":
                return Source(f"file://{shelf}/team/store")
            if scheme == "pvc":
                monkeypatch.setenv("MINT_PVC_ROOT", str(shelf))
                return Source("pvc://team/store")
            if scheme == "http":
                address, _ = stack.enter_context(stores.serving(stores.Files, shelf))
                return Source(f"http://{address}/team/store")
            if scheme == "hf":
                address, _ = stack.enter_context(stores.serving(stores.Hub, shelf))
                monkeypatch.setenv("HF_ENDPOINT", f"http://{address}")
                return Source("hf://team/store", "v1")
            if scheme == "s3":
                monkeypatch.setenv("AWS_ENDPOINT_URL", stack.enter_context(stores.s3(shelf)))
                for name, value in {
                    "ACCESS_KEY_ID": "id",
                    "SECRET_ACCESS_KEY": "secret",
                    "REGION": "us-east-1",
                }.items():
                    monkeypatch.setenv(f"AWS_{name}", value)
                return Source(f"s3://{stores.BUCKET}/team/store")
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", stack.enter_context(stores.gs(shelf)))
            return Source(f"gs://{stores.BUCKET}/team/store")

        yield open_store
    backends.backend.cache_clear()


def loader(tmp_path: Path, budget: int = 1 << 20) -> Loader:
    return Loader(DiskTier(tmp_path / "disk", budget), tiny_fit(), torch.float32)


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
        "acme/cut": errors.CorruptFile,
        "acme/high": errors.RankTooLarge,
    }.items():
        with pytest.raises(errors.MintError) as caught:
            here.load(child(store, name))
        assert type(caught.value) is error, (name, caught.value)
        assert not here.disk.holds(child(store, name))
    assert [only] == list((tmp_path / "disk").iterdir()), "nothing remains of what failed"


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_base_is_fetched_whole_and_without_its_pickles(
    scheme: str, opened: Callable[[str], Source], shelf: Path, tmp_path: Path
) -> None:
    looks: list[list[str]] = []

    def look(folder: Path, _: str) -> None:
        looks.append(sorted(each.name for each in folder.iterdir()))

    store, truth = opened(scheme), shelf / "team" / "store" / "base"
    assert (truth / "consolidated.safetensors").exists()
    path = fetch_base(child(store, "base"), tmp_path, look)
    shards = sorted(each.name for each in truth.glob("model-*.safetensors"))
    assert len(shards) > 1
    for name in [*shards, "config.json", "model.safetensors.index.json"]:
        assert (path / name).read_bytes() == (truth / name).read_bytes()
    if scheme not in {"file", "pvc"}:
        assert not (path / "pytorch_model.bin").exists()
        assert not (path / "consolidated.safetensors").exists()
        assert path == fetch_base(child(store, "base"), tmp_path, look), "the second time it is there already"

        assert looks == [["config.json", "generation_config.json", "model.safetensors.index.json"]]

    gguf = fetch_base(child(store, "gguf/tiny.gguf"), tmp_path, look)
    assert gguf.read_bytes().startswith(b"GGUF")
    with pytest.raises(errors.SourceNotFound):
        fetch_base(child(store, "gguf/absent.gguf"), tmp_path, look)
    with pytest.raises(errors.SourceNotFound):
        fetch_base(child(store, "absent"), tmp_path, look)
    if scheme not in {"file", "pvc"}:
        with pytest.raises(errors.UnsafeFormat):
            fetch_base(child(store, "pickles"), tmp_path, look)


INDEX = "model.safetensors.index.json"


def tokenizer_as_code(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    told = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def another_attention(folder: Path) -> None:
    edit_base(folder, "config.json", model_type="llama4_text", attention_chunk_size=32)


def another_method(folder: Path) -> None:
    edit_base(folder, "config.json", quantization_config={"quant_method": "gptq"})


def another_shard(folder: Path) -> None:
    edit_base(folder, INDEX, weight_map={"lm_head.weight": "model-00009-of-00009.safetensors"})


def edit_base(folder: Path, name: str, **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def another_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "added_tokens": [], "model": {"type": "None"}}')


def another_count(folder: Path) -> None:
    edit_base(folder, "config.json", num_attention_heads=0)


def another_rope(folder: Path) -> None:
    edit_base(folder, "config.json", rope_parameters={"rope_type": "yarn", "factor": "four"})


def nothing(_: Path) -> None:
    """The base is as it should be."""


@pytest.mark.parametrize(
    ("change", "told", "error", "says"),
    [
        (nothing, {"context_length": 300}, errors.UnsupportedBase, "contextLength: is 300, but the base knows 256"),
        (nothing, {"kv_cache_bytes": 1 << 12}, errors.CapacityExceeded, "kvCacheMemory: of 4096 bytes"),
        (nothing, {"target_modules": ("w_qkv",)}, errors.UnsupportedBase, "targetModules: names w_qkv"),
        (nothing, {"tensor_parallel_size": 8}, errors.UnsupportedBase, "tensorParallelSize: is 8"),
        (tokenizer_as_code, {}, errors.UnsupportedBase, "'http.*base': has a tokenizer that is code of its own"),
        (another_tokenizer, {}, errors.UnsupportedBase, "has no tokenizer that can be loaded: Exception: "),
        (another_count, {}, errors.UnsupportedBase, "ZeroDivisionError"),
        (another_rope, {}, errors.UnsupportedBase, "has a configuration that is not served"),
        (another_attention, {}, errors.UnsupportedBase, "chunk"),
        (another_method, {}, errors.UnsupportedBase, "'http.*base': is quantised by 'gptq'"),
        (another_shard, {}, errors.CorruptFile, f"lacks model-00009-of-00009.safetensors, named by {INDEX}"),
    ],
)  # fmt: skip
def test_a_base_that_can_not_be_served_is_refused_before_its_weights_are_copied(
    change: Callable[[Path], None], told: dict[str, Any], error: type[errors.MintError], says: str, tmp_path: Path
) -> None:
    backends.backend.cache_clear()
    save_base(tmp_path / "base", max_shard_size="100KB")
    change(tmp_path / "base")
    with stores.serving(stores.Files, tmp_path) as (address, handler):
        source = Source(f"http://{address}/base")
        settings = replace(settings_for(tmp_path, **told), source=source)
        with pytest.raises(error, match=says):
            fetch_base(source, tmp_path / "cache", partial(check_small_files, settings))
        start = Start(settings, "a", "127.0.0.1:1", tmp_path / "cache", 0, 0)
        assert type(find_base(start)) is error, "so does every node of several"
        assert "GET /base/config.json" in handler.seen or "lacks" in says
        assert not any(line.startswith("GET /base/model-0000") and "-of-00005" in line for line in handler.seen)
    assert list((tmp_path / "cache" / "base").glob("*")) == []


def test_a_node_does_not_ask_again_at_once_for_a_base_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.backend.cache_clear()
    another_method(save_base(tmp_path / "base"))
    with stores.serving(stores.Files, tmp_path) as (address, handler):
        settings = replace(settings_for(tmp_path), source=Source(f"http://{address}/base"))
        own = worker.OwnBase(Start(settings, "a", "127.0.0.1:1", tmp_path / "cache", 0, 0))
        refused, asked = own.find(), len(handler.seen)
        assert isinstance(refused, errors.UnsupportedBase)
        assert own.find() is refused
        assert len(handler.seen) == asked
        edit_base(tmp_path / "base", "config.json", quantization_config=None)
        own._again_at = 0.0
        assert isinstance(own.find(), Path)
        (tmp_path / "base" / "config.json").unlink()
        assert isinstance(own.find(), Path)


def test_what_nobody_foresaw_in_a_base_ends_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*_: object) -> None:
        raise UnboundLocalError("an oversight")

    monkeypatch.setattr(worker, "fetch_base", look)
    found = find_base(Start(settings_for(tmp_path), "a", "127.0.0.1:1", tmp_path, 0, 0))
    assert isinstance(found, errors.Internal)
    assert "UnboundLocalError" in str(found)


def test_a_copy_whose_removal_is_cut_off_is_not_taken_for_a_whole_one(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.backend.cache_clear()
    with stores.serving(stores.Files, shelf) as (address, _):
        source = Source(f"http://{address}/team/store/base")
        path = fetch_base(source, tmp_path, lambda *_: None)
        with monkeypatch.context() as killed:
            killed.setattr(shutil, "rmtree", lambda *_, **__: None)
            drop_base(source, tmp_path)
        assert not path.exists()
        assert list((tmp_path / "base").iterdir()) != []
        assert fetch_base(source, tmp_path, lambda *_: None) == path
        assert list((tmp_path / "base").iterdir()) == [path]
        drop_base(source, tmp_path)
        assert list((tmp_path / "base").iterdir()) == []


def test_what_a_killed_process_left_of_a_base_makes_room_for_the_next_copy(shelf: Path, tmp_path: Path) -> None:
    backends.backend.cache_clear()
    left = tmp_path / "base" / ".partial-killed" / "files"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(bytes(1000))
    with stores.serving(stores.Files, shelf) as (address, _):
        path = fetch_base(Source(f"http://{address}/team/store/base"), tmp_path, lambda *_: None)
    assert list((tmp_path / "base").iterdir()) == [path]


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
            return done.stdout.strip()

        assert fetch("untrusted") == "SourceUnavailable"
        path = Path(fetch("trusted", SSL_CERT_FILE=str(authority)))
    assert json.loads((path / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("scheme", ["http", "s3", "hf"])
def test_storage_that_does_not_answer_is_tried_again_later(
    scheme: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
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


def test_what_storage_forbids_is_terminal(shelf: Path, tmp_path: Path) -> None:
    backends.backend.cache_clear()
    with stores.serving(stores.Files, shelf) as (address, _), pytest.raises(errors.SourceForbidden) as caught:
        loader(tmp_path).load(Source(f"http://{address}/private/adapter"))
    assert caught.value.terminal


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


def test_links_inside_a_claim_are_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    claim = tmp_path / "claims" / "mine"
    peft_adapter(claim / "versions" / "7")
    (claim / "current").symlink_to("versions/7")
    monkeypatch.setenv("MINT_PVC_ROOT", str(tmp_path / "claims"))
    assert loader(tmp_path).load(Source("pvc://mine/current")).rank == 4


def test_a_claim_that_is_not_mounted_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINT_PVC_ROOT", str(tmp_path))
    with pytest.raises(errors.SourceForbidden, match="volumeClaims"):
        loader(tmp_path).load(Source("pvc://elsewhere/a"))


def test_a_cache_that_is_too_small_is_said_with_numbers(opened: Callable[[str], Source], tmp_path: Path) -> None:
    source = child(opened("http"), "acme/good")
    with pytest.raises(errors.CapacityExceeded, match="of a disk cache of 999"):
        loader(tmp_path, budget=999).load(source)


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), errors.Overloaded),
        (OSError(errno.EIO, "Input/output error"), errors.SourceUnavailable),
        (MemoryError(), errors.Overloaded),
    ],
)
def test_what_the_engines_own_disk_or_memory_refuses_is_not_the_adapters_fault(
    trouble: Exception, told: type[errors.MintError], shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(packed: Packed, file: BinaryIO) -> None:
        file.write(b"half")
        raise trouble

    here, source = loader(tmp_path), Source(f"file://{shelf}/team/store/acme/good")
    with monkeypatch.context() as broken:
        broken.setattr(packed_file, "write", write)
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


def test_a_server_that_hangs_up_early_is_tried_again(shelf: Path, tmp_path: Path) -> None:
    backends.backend.cache_clear()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        source = Source(f"http://127.0.0.1:{listener.getsockname()[1]}/a")
        import threading

        def hang_up() -> None:
            while True:
                try:
                    listener.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(errors.SourceUnavailable):
            read_adapter(folder_of(source), tiny_fit(), torch.float32)

"""Copies of a base on a node: no copy of a base that cannot be served, and no incomplete copy in use."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from mint_contracts import backends, errors
from mint_contracts.source import Source
from mint_engine.environment import Start
from mint_engine.parallel import worker
from mint_engine.parallel.worker import find_base
from mint_engine.preflight import check_small_files
from mint_engine.sources.fetch_base import cached_base, copied_marks, drop_base, fetch_base
from tests.engine import stores
from tests.engine.made import edit_base, edit_json
from tests.engine.running import save_base, settings_for

INDEX = "model.safetensors.index.json"


def tokenizer_as_code(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    told = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def another_attention(folder: Path) -> None:
    edit_base(folder, model_type="llama4_text", attention_chunk_size=32)


def another_method(folder: Path) -> None:
    edit_base(folder, quantization_config={"quant_method": "gptq"})


def another_shard(folder: Path) -> None:
    edit_json(folder / INDEX, weight_map={"lm_head.weight": "model-00009-of-00009.safetensors"})


def another_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "added_tokens": [], "model": {"type": "None"}}')


def another_count(folder: Path) -> None:
    edit_base(folder, num_attention_heads=0)


def another_rope(folder: Path) -> None:
    edit_base(folder, rope_parameters={"rope_type": "yarn", "factor": "four"})


def nothing(_: Path) -> None:
    """Leave the base unchanged."""


@pytest.mark.parametrize(
    ("change", "told", "error", "says"),
    [
        (nothing, {"context_length": 300}, errors.UnsupportedBase, "contextLength: is 300, but the base has 256"),
        (nothing, {"kv_cache_bytes": 1 << 12}, errors.CapacityExceeded, "kvCacheMemory: of 4096 bytes"),
        (nothing, {"target_modules": ("w_qkv",)}, errors.UnsupportedBase, "targetModules: names w_qkv"),
        (nothing, {"tensor_parallel_size": 8}, errors.UnsupportedBase, "tensorParallelSize: is 8"),
        (tokenizer_as_code, {}, errors.UnsupportedBase, "'http.*base': has a tokenizer that is custom code"),
        (another_tokenizer, {}, errors.UnsupportedBase, "has no loadable tokenizer: Exception: "),
        (another_count, {}, errors.UnsupportedBase, "a config.json where `num_attention_heads` is 0"),
        (another_rope, {}, errors.UnsupportedBase, "has an unsupported configuration"),
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


def test_a_node_does_not_ask_again_at_once_for_a_base_that_is_refused(tmp_path: Path) -> None:
    backends.backend.cache_clear()
    another_method(save_base(tmp_path / "base"))
    with stores.serving(stores.Files, tmp_path) as (address, handler):
        settings = replace(settings_for(tmp_path), source=Source(f"http://{address}/base"))
        own = worker.OwnBase(Start(settings, "a", "127.0.0.1:1", tmp_path / "cache", 0, 0))
        refused, asked = own.find(), len(handler.seen)
        assert isinstance(refused, errors.UnsupportedBase)
        assert own.find() is refused
        assert len(handler.seen) == asked
        edit_base(tmp_path / "base", quantization_config=None)
        own._again_at = 0.0
        assert isinstance(own.find(), Path)
        (tmp_path / "base" / "config.json").unlink()
        assert isinstance(own.find(), Path)


def test_an_unforeseen_error_in_a_base_does_not_end_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert copied_marks(source, tmp_path)
        drop_base(source, tmp_path)
        assert list((tmp_path / "base").iterdir()) == []
        assert not copied_marks(source, tmp_path), "they would tell of a copy that is no more"


def test_leftovers_of_a_killed_process_make_room_for_the_next_copy(shelf: Path, tmp_path: Path) -> None:
    backends.backend.cache_clear()
    left = tmp_path / "base" / ".partial-killed" / "files"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(bytes(1000))
    with stores.serving(stores.Files, shelf) as (address, _):
        path = fetch_base(Source(f"http://{address}/team/store/base"), tmp_path, lambda *_: None)
    assert list((tmp_path / "base").iterdir()) == [path]


def test_a_base_takes_the_place_of_another_one_in_a_cache_that_outlives_both(shelf: Path, tmp_path: Path) -> None:
    backends.backend.cache_clear()
    store = shelf / "team" / "store"
    shutil.copytree(store / "base", store / "next")
    with stores.serving(stores.Files, shelf) as (address, _):
        for name in ("base", "next"):
            path = fetch_base(Source(f"http://{address}/team/store/{name}"), tmp_path, lambda *_: None)
    assert list((tmp_path / "base").iterdir()) == [path]


def test_leftover_files_that_the_base_no_longer_has_are_ignored(shelf: Path, tmp_path: Path) -> None:
    backends.backend.cache_clear()
    looks: list[list[str]] = []
    with stores.serving(stores.Files, shelf) as (address, _):
        source = Source(f"http://{address}/team/store/base")
        target = cached_base(source, tmp_path)
        left = target.with_name(f".partial-{target.name}") / "files"
        left.mkdir(parents=True)
        (left / "tiny-q8.gguf").write_bytes(b"GGUF")
        path = fetch_base(source, tmp_path, lambda folder, _: looks.append([each.name for each in folder.iterdir()]))
    assert looks
    assert "tiny-q8.gguf" not in [*looks[0], *(each.name for each in path.iterdir())]


class Lengthless(stores.Files):
    """Sends no lengths, as servers that compress their answers do."""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Content-Length":
            super().send_header(keyword, value)


def test_a_file_of_untold_length_is_copied_whole_or_refused(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends.backend.cache_clear()
    largest = max((shelf / "team" / "store" / "base").iterdir(), key=lambda each: each.stat().st_size)
    free = largest.stat().st_size - 1
    with stores.serving(Lengthless, shelf) as (address, _):
        source = Source(f"http://{address}/team/store/base")
        with capture_logs() as lines:
            path = fetch_base(source, tmp_path / "large", lambda *_: None)
        assert (path / largest.name).read_bytes() == largest.read_bytes()
        copied = {line["file"]: line["bytes"] for line in lines if line["event"] == "base_file_copied"}
        assert copied == {each.name: each.stat().st_size for each in path.iterdir()}
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        with pytest.raises(errors.CapacityExceeded, match=f"more of {largest.name} than the {free} bytes"):
            fetch_base(source, tmp_path / "small", lambda *_: None)
    assert not list((tmp_path / "small" / "base").iterdir())

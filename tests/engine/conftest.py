"""Fixtures that the engine's tests share: a tiny base, an engine over it, stores of tiny adapters, a residency."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mint_contracts import backends
from mint_contracts.source import Source
from mint_engine.model.upcast import fit_products
from mint_engine.sources.fetch import CONFIG, WEIGHTS
from tests.engine import stores
from tests.engine.balance import Imbalances
from tests.engine.made import edit_config, edit_tensors, lora_names, peft_adapter, tiny_llama
from tests.engine.running import ALL_SEVEN, running, save_adapter, save_base, save_tokenizer
from tests.engine.tiers import NAMES, Scene
from tests.heartbeats import expire_late
from tests.redis_process import RedisProcess


@pytest.fixture(scope="session", autouse=True)
def products() -> None:
    """Fit the products as an engine does when it loads its base: some tests build models without loading one."""
    fit_products(torch.bfloat16, torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """The byte-level tokenizer of the tiny bases."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return tokenizer


@pytest.fixture(autouse=True)
def _strong_hearts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let heartbeats expire late, so that an engine in a test's own process lives until the test ends it."""
    expire_late(monkeypatch)


@pytest.fixture(autouse=True)
def imbalances() -> Iterator[Imbalances]:
    """Check after every test that the engines' audits, while idle or at their end, found balanced books."""
    audits = Imbalances()
    yield audits
    assert bool(audits.found) == audits.planted, f"books did not balance {audits.found} times; see the log"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """A copy of the base that a test may break."""
    return Path(shutil.copytree(base, tmp_path / "base"))


@pytest.fixture(scope="module")
def redis_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    with RedisProcess(tmp_path_factory.mktemp("redis")) as process:
        yield process


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter over that base with weights on every module that may have them."""
    return save_adapter(base, tmp_path_factory.mktemp("adapter"), rank=4, targets=ALL_SEVEN)


@pytest.fixture
async def quiet(base: Path) -> Any:
    """An engine with no requests but the test's own."""
    async with running(base) as engine:
        yield engine


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    peft_adapter(folder / NAMES[0])
    name = lora_names(folder / NAMES[0])[0]
    for index, other in enumerate(NAMES[1:], start=1):
        shutil.copytree(folder / NAMES[0], folder / other)
        edit_tensors(folder / other, {name: load_file(folder / NAMES[0] / WEIGHTS)[name] * (index + 1)})
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """The test's own store of eight adapters."""
    return shutil.copytree(made, tmp_path / "store")


@pytest.fixture
async def scene(store: Path, tmp_path: Path) -> AsyncIterator[Callable[..., Scene]]:
    """`scene(slots=..., host=..., store=...)` makes and starts a scene."""
    made: list[Scene] = []
    own = Source(f"file://{store}")

    def make(slots: int = 2, host: int = 1 << 20, store: Source | None = own, **limits: Any) -> Scene:
        here = Scene(tmp_path, slots, host, store, **limits)
        here.residency.start()
        made.append(here)
        return here

    yield make
    for here in made:
        here.slots.gate.set()
        here.loader.gate.set()
        await here.residency.close()
        here.residency.check()
        assert not here.defects


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """team/store/...: adapters good and broken, and two bases."""
    root = tmp_path_factory.mktemp("shelf")
    store = root / "team" / "store"
    peft_adapter(store / "acme" / "good")
    (store / "acme" / "pickled").mkdir()
    (store / "acme" / "pickled" / "adapter_model.bin").write_bytes(b"\x80\x04.")
    shutil.copytree(store / "acme" / "pickled", store / "acme" / "only-pickled")
    shutil.copy(store / "acme" / "good" / CONFIG, store / "acme" / "pickled" / CONFIG)
    shutil.copytree(store / "acme" / "good", store / "acme" / "cut")
    cut = store / "acme" / "cut" / WEIGHTS
    cut.write_bytes(cut.read_bytes()[:-10])
    shutil.copytree(store / "acme" / "good", store / "acme" / "high")
    edit_config(store / "acme" / "high", r=99)
    tiny_llama().save_pretrained(store / "base", max_shard_size="30KB")
    (store / "base" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (store / "base" / "consolidated.safetensors").write_bytes(bytes(100))  # the same weights in its maker's format
    (store / "base" / "tiny-q8.gguf").write_bytes(b"GGUF" + bytes(100))  # and for llama.cpp
    (store / "base" / "tiny-q4.gguf").write_bytes(b"GGUF" + bytes(50))
    (store / "gguf").mkdir()
    (store / "gguf" / "tiny.gguf").write_bytes(b"GGUF" + bytes(100))
    (store / "pickles").mkdir()
    (store / "pickles" / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    (root / "private").mkdir()
    return root


@pytest.fixture
def opened(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Source]]:
    """`opened(scheme)` starts that scheme's server over the shelf; it returns the shelf's store as a source."""
    with ExitStack() as stack:
        yield lambda scheme: stores.opened(scheme, shelf, stack, monkeypatch)
    backends.backend.cache_clear()

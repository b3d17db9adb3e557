"""A base comes to a GPU tensor by tensor: host memory never holds more of it than the few that are being read."""

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from transformers import LlamaConfig, PreTrainedModel, Qwen3MoeConfig
from transformers.core_model_loading import GLOBAL_WORKERS, Concatenate

from mint_engine.model import stored
from mint_engine.model.base import load_base
from mint_engine.model.modules import layers_of
from mint_engine.model.quantised_experts import every_weight
from mint_engine.model.reference import load_part
from mint_engine.parallel.part import Part
from tests.engine.device_double import CUDA, standing_in
from tests.engine.families import CPU, MOE, SIZES, make_model
from tests.engine.ggufs import save
from tests.engine.quantised_experts import SAVES, load
from tests.engine.running import save_base
from tests.engine.saved_families import save_base as save_family


@dataclass
class Reads:
    """The tensors that were read from files and are still in host memory."""

    now: int = 0  # bytes
    peak: int = 0
    total: int = 0
    largest: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, tensor: torch.Tensor) -> torch.Tensor:
        nbytes = tensor.nbytes
        with self.lock:
            self.now += nbytes
            self.total += nbytes
            self.peak, self.largest = max(self.peak, self.now), max(self.largest, nbytes)
        weakref.finalize(tensor, self._end, nbytes)
        return tensor

    def _end(self, nbytes: int) -> None:
        with self.lock:
            self.now -= nbytes


@contextmanager
def watched() -> Iterator[Reads]:
    reads, plain = Reads(), stored._Mapped.__getitem__

    def noted(self: Any, part: Any) -> torch.Tensor:
        return reads.note(plain(self, part))

    gc.disable()  # what is freed only by a collection is in memory until then
    try:
        with patch.object(stored._Mapped, "__getitem__", noted):
            yield reads
    finally:
        gc.enable()


def assert_same(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    for (name, one), (_, other) in zip(every_weight(found), every_weight(expected), strict=True):
        assert one.device == CUDA, name
        assert torch.equal(one.cpu(), other), name
    assert {each.device for each in found.buffers()} <= {CUDA}


def test_host_memory_holds_the_tensors_that_are_being_read(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", num_hidden_layers=24)
    expected = load_base(base, torch.float32, CPU)
    with standing_in(), watched() as reads:
        found = load_base(base, torch.float32, CUDA)
        assert_same(found.model, expected.model)
    assert reads.peak <= (GLOBAL_WORKERS + 1) * reads.largest < reads.total / 2
    assert reads.now == 0


@pytest.mark.parametrize("family", ["llama", "qwen3moe"])
def test_host_memory_holds_a_layer_of_a_gguf_file(family: str, tmp_path: Path) -> None:
    """Whose gates and ups become one there, if it has experts."""
    sizes = SIZES | {"hidden_size": 64, "num_hidden_layers": 12}
    if family == "llama":
        model = make_model(LlamaConfig(**sizes))
        save(tmp_path / "base.gguf", model, family)
    else:
        model = make_model(Qwen3MoeConfig(**sizes, **MOE | {"moe_intermediate_size": 768}, norm_topk_prob=True))
        told = {"expert_count": 6, "expert_used_count": 2}
        told |= {"attention.key_length": model.config.head_dim, "attention.value_length": model.config.head_dim}
        told = {f"ARCH.{key}": value for key, value in told.items()}
        save(tmp_path / "base.gguf", model, family, told)
    reads, plain = Reads(), torch.from_numpy
    gc.disable()
    try:
        with standing_in(), patch.object(torch, "from_numpy", lambda array: reads.note(plain(array))):
            assert_same(load_base(tmp_path, torch.float32, CUDA).model, model)
    finally:
        gc.enable()
    assert reads.now == 0
    assert reads.peak < reads.total / 8, "of twelve layers"


def test_experts_are_merged_on_the_gpu(tmp_path: Path) -> None:
    base = save_family("qwen3_moe", tmp_path / "base")
    expected = load_base(base, torch.float32, CPU)
    with standing_in(), watched() as reads:
        assert_same(load_base(base, torch.float32, CUDA).model, expected.model)
    assert reads.now == 0


@pytest.mark.parametrize("form", ["float8", "mxfp4", "nvfp4 and float8", "reordered numbers"])
def test_experts_that_stay_quantised_are_read_onto_the_gpu(form: str, tmp_path: Path) -> None:
    _, save = SAVES[form]
    quantised, _ = save(tmp_path)
    expected = load(quantised)
    with standing_in() as device, watched() as reads:
        before = device.allocated
        found = load_base(quantised, torch.bfloat16, CUDA, quantised_experts=True)
        assert device.allocated > before
        for (name, one), (_, other) in zip(every_weight(found.model), every_weight(expected.model), strict=True):
            assert torch.equal(one.cpu(), other), name
    assert reads.now == 0, "nothing is kept in host memory"


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_of_several_ranks_the_first_keeps_each_cut_layer_on_its_gpu(family: str, tmp_path: Path) -> None:
    """Which it has read and computed in host memory."""
    base = save_base(tmp_path / "base") if family == "llama" else save_family(family, tmp_path / "base")
    expected, reference = load_part(base, torch.float32, Part(0, 2))
    with standing_in():
        found, same = load_part(base, torch.float32, Part(0, 2), device=CUDA)
        assert torch.equal(same.logits, reference.logits)
        for (_, one), (_, other) in zip(layers_of(found.model), layers_of(expected.model), strict=True):
            for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
                assert mine.device == CUDA
                assert torch.equal(mine.cpu(), theirs)


def test_other_ranks_read_their_shares_onto_their_gpus(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", num_hidden_layers=24)
    expected = load_base(base, torch.float32, CPU, Part(1, 2))
    with standing_in(), watched() as reads:
        found = load_base(base, torch.float32, CPU, Part(1, 2, device=CUDA))
        for one, other in zip(found.model.parameters(), expected.model.parameters(), strict=True):
            assert one.device == CUDA
            assert torch.equal(one.cpu(), other)
    assert reads.peak <= (GLOBAL_WORKERS + 1) * reads.largest < reads.total / 2


def full(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


@pytest.mark.parametrize("where", [(stored._Mapped, "__getitem__"), (Concatenate, "convert")])
def test_a_gpu_that_is_full_is_no_fault_of_the_base(
    where: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is its copy on disk then deleted, as one that cannot be loaded is."""
    base = save_family("qwen3_moe", tmp_path / "base")
    monkeypatch.setattr(*where, full)
    with standing_in(), pytest.raises(torch.OutOfMemoryError, match="20 GiB"):
        load_base(base, torch.float32, CUDA)

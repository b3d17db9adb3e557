"""The dtype, device and threads that an engine computes with, and the memory of its large tensors."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mint_contracts.errors import CapacityExceeded, UnsupportedBase
from mint_contracts.layer_groups import group_layers
from mint_engine.model.cache import KvCache
from mint_engine.model.device import choose_device, choose_dtype, claiming, count_threads, zeros
from mint_engine.model.quantised_experts import move
from mint_engine.residency.slots import Slots
from tests.engine.slot_memory import MODULES

CPU = torch.device("cpu")


def test_dtypes_devices_and_threads() -> None:
    assert choose_dtype("bfloat16") is torch.bfloat16
    assert choose_device("cpu") == CPU
    assert 1 <= count_threads(1) <= count_threads()


def test_a_rank_without_a_device_of_its_own_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UnsupportedBase, match=r"has 1 GPUs on this machine, .*tensorParallelSize"):
        choose_device("cuda", 1)
    with pytest.raises(UnsupportedBase, match="'tpu': is not available on this machine"):
        choose_device("tpu", 1)


def test_attention_on_a_gpu_makes_no_plan_for_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """As cuDNN's does, which torch prefers on Hopper and Blackwell."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    backend: Any = torch.backends.cuda  # whose functions have no types
    before = backend.cudnn_sdp_enabled()
    try:
        backend.enable_cudnn_sdp(True)
        assert choose_device("cuda") == torch.device("cuda", 0)
        assert not backend.cudnn_sdp_enabled()
    finally:
        backend.enable_cudnn_sdp(before)


def test_zeros_cost_memory_only_where_they_are_written() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, size = resident_bytes(), 512 << 20
    many = zeros((512, 1 << 20), torch.uint8, CPU)
    many[3].fill_(1)
    assert resident_bytes() - before < size // 4
    assert many[:8].sum() == 1 << 20


def test_slots_that_no_machine_can_hold_are_refused_by_number_and_rank() -> None:
    with pytest.raises(
        CapacityExceeded,
        match=r"^deviceSlots: of 100000000 with maxRank 512 needs \S+ TiB, which is more than this machine has free "
        r"\(Cannot allocate memory\); lower one of the two$",
    ):
        Slots(MODULES, 10**8, 512, torch.bfloat16, CPU)


def test_a_cache_that_no_machine_can_hold_is_refused_by_its_size() -> None:
    with pytest.raises(
        CapacityExceeded,
        match=r"^kvCacheMemory: of \d+ TiB is more than this machine has free \(Cannot allocate memory\); lower it$",
    ):
        KvCache(group_layers((None,)), heads=8, head_dim=128, pages=2**32, dtype=torch.bfloat16, device=CPU)


def test_memory_that_a_gpu_lacks_is_refused_likewise() -> None:
    with (
        pytest.raises(CapacityExceeded, match=r"^kvCacheMemory: of 90 GiB is more than this GPU has free \(out of"),
        claiming("kvCacheMemory", "of 90 GiB"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB.")


def test_a_base_that_a_gpu_lacks_memory_for_is_refused_with_what_to_use_instead() -> None:
    class TooLarge(torch.nn.Module):
        def _apply(self, *_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 90.00 GiB.")

    with pytest.raises(CapacityExceeded, match=r"^base: needs more memory than this GPU has free; .*mint plan"):
        move(TooLarge(), torch.device("cuda"))

"""The dtype, device and threads that an engine computes with, and the memory of its large tensors."""

import os
from pathlib import Path

import pytest
import torch

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.device import choose_device, choose_dtype, count_threads, zeros

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


def test_zeros_cost_memory_only_where_they_are_written() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, size = resident_bytes(), 512 << 20
    many = zeros((512, 1 << 20), torch.uint8, CPU)
    many[3].fill_(1)
    assert resident_bytes() - before < size // 4
    assert many[:8].sum() == 1 << 20

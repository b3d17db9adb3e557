"""A cache is in memory before the first request uses its pages: no request waits for page faults."""

import errno
import mmap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded
from mint_contracts.layer_groups import group_layers
from mint_engine.build import build
from mint_engine.model.cache import Cache, KvCache, LatentCache
from mint_engine.model.latent_sizes import LatentSizes
from mint_engine.residency.remapping import bytes_in_memory, populate_zeros, reserve
from tests.engine.running import settings_for

CPU, LARGE = torch.device("cpu"), 2 << 20


def key_values() -> Cache:
    return KvCache(group_layers((None,) * 3), heads=2, head_dim=64, pages=199, dtype=torch.bfloat16, device=CPU)


def latents() -> Cache:
    return LatentCache(
        group_layers((None,) * 3), LatentSizes(128, 64, 256), pages=199, dtype=torch.bfloat16, device=CPU
    )


def in_memory(cache: Cache) -> int:
    return bytes_in_memory(cache.pool.data_ptr(), cache.pool.nbytes)


@pytest.mark.parametrize("make", [key_values, latents])
def test_all_of_it_comes_at_once_and_is_zero(make: Callable[[], Cache]) -> None:
    cache = make()
    assert in_memory(cache) == 0
    cache.bring_in()
    assert in_memory(cache) == cache.pool.nbytes
    assert not cache.pool.any()


def test_values_written_before_stay() -> None:
    cache = key_values()
    cache.pool[1, 7] = 3.0
    before = cache.pool.clone()
    cache.bring_in()
    assert torch.equal(cache.pool, before)


def test_an_engine_begins_with_all_of_it(base: Path) -> None:
    _, _, generation = build(settings_for(base, kv_cache_bytes=64 << 20), base)
    cache = generation._forward.cache
    assert in_memory(cache) == cache.pool.nbytes
    generation.close()


def test_from_the_middle_of_a_large_page_to_that_of_another() -> None:
    memory = reserve(8 * LARGE)
    first, within = memory.ctypes.data + LARGE // 2, 100
    populate_zeros(first + within, 3 * LARGE)
    asked = within + 3 * LARGE
    assert bytes_in_memory(first, asked) == asked
    assert bytes_in_memory(memory.ctypes.data + 5 * LARGE, 3 * LARGE) == 0, "what nobody asked for"


def test_memory_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_free(_address: int, _nbytes: int) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("mint_engine.model.cache.populate_zeros", nothing_free)
    cache = key_values()
    with pytest.raises(
        CapacityExceeded, match=rf"kvCacheMemory: of {in_units(cache.bytes)} is more than this machine"
    ):
        cache.bring_in()


def test_memory_that_is_not_mapped_is_refused() -> None:
    with pytest.raises(OSError, match="Cannot allocate memory"):
        populate_zeros(mmap.PAGESIZE, mmap.PAGESIZE)  # the system maps nothing this low (vm.mmap_min_addr)

"""Checks of a base before any of its weights are copied or read, using only its small files and the spec."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded, UnsupportedBase
from mint_contracts.layer_groups import PAGE_TOKENS
from mint_contracts.settings import EngineSettings
from mint_engine.model.base import empty_model
from mint_engine.model.cache_shape import cache_shape, pages_in, shape_for
from mint_engine.model.device import choose_device, choose_dtype
from mint_engine.model.device_memory import read_memory
from mint_engine.model.experts import is_stack, route_shape
from mint_engine.model.files import LIBRARY_ERRORS, BaseFiles, check_start, first_line, read_config, read_tokenizer
from mint_engine.model.modules import find_modules
from mint_engine.model.positions import alike_positions, positions_of
from mint_engine.model.quantised_experts import nothing_to_keep
from mint_engine.parallel.part import Part
from mint_engine.parallel.shares import cuts_of
from mint_engine.residency.slots import slots_bytes


def check_small_files(settings: EngineSettings, folder: Path, subject: str, rank: int | None = 0) -> None:
    """Check a base by the files of a folder that does not have its weights yet. Raises a MintError naming `subject`.

    If the base is a GGUF file, the folder has its head. `rank` is as in `check_config`.
    """
    files = BaseFiles(folder, next((each.name for each in folder.glob("*.gguf")), None), subject)
    check_start(files)
    config, quantisation = read_config(files)
    check_config(settings, config, subject, rank)
    if settings.quantised_experts and quantisation is None:
        raise nothing_to_keep(subject)
    read_tokenizer(files)


def check_config(settings: EngineSettings, config: PreTrainedConfig, subject: str, rank: int | None = 0) -> None:
    """Check a base by its configuration, and by the free memory of the GPU of a `rank`, unless that is None.

    Raises UnsupportedBase for features that no engine serves, and for lengths, modules and ranks that the base does
    not have, CapacityExceeded if the cache is too small, or the GPU for what the rank holds.
    """
    try:
        _check_config(settings, config, subject, rank)
    except LIBRARY_ERRORS as error:  # from values and types that transformers has not checked
        raise UnsupportedBase(subject, f"has an unsupported configuration: {first_line(error)}") from error


def _check_config(settings: EngineSettings, config: PreTrainedConfig, subject: str, rank: int | None) -> None:
    text = config.get_text_config()
    _check_context(settings, text)
    cache_shape(text)
    model = empty_model(config, subject)
    routes, dtype = route_shape(model), choose_dtype(settings.dtype)
    shape = shape_for(settings, text, routes)
    pages = pages_in(settings, shape, routes, dtype)
    modules = find_modules(model, settings.target_modules)
    if settings.quantised_experts and routes is None:
        raise nothing_to_keep(subject)
    cuts = None
    if settings.tensor_parallel_size > 1:
        share = Part(rank or 0, settings.tensor_parallel_size, settings.target_modules).cut(model)
        cuts, shape = cuts_of(modules, share), shape.shared(share.kv_heads.size)
    if settings.device != "cpu" and rank is not None:
        weights = sum(each.numel() for each in _certain(model, settings)) * dtype.itemsize
        slots = slots_bytes(modules, settings.device_slots, settings.max_rank, dtype, cuts)
        cache = (pages + 1) * PAGE_TOKENS * shape.token_elements * dtype.itemsize
        _check_gpu(settings, rank, (weights, slots, cache), subject)


def _check_gpu(settings: EngineSettings, rank: int, needs: tuple[int, int, int], subject: str) -> None:
    """Raise CapacityExceeded if the bytes of weights, slots and cache are more than the rank's GPU has free."""
    device = choose_device(settings.device, rank % settings.ranks_per_node)
    memory, (weights, slots, cache) = read_memory(device), needs
    where = f"{device}" if settings.tensor_parallel_size == 1 else f"rank {rank}'s {device}"
    if sum(needs) > memory.free:
        raise CapacityExceeded(
            subject,
            f"needs at least {in_units(sum(needs))} of a GPU's memory ({in_units(weights)} for weights, "
            f"{in_units(slots)} for slots, {in_units(cache)} for the cache), and {where} has "
            f"{in_units(memory.free)} of {in_units(memory.total)} free; use larger GPUs or more of them "
            "(tensorParallelSize), or lower deviceSlots, maxRank or kvCacheMemory",
        )


def _certain(model: PreTrainedModel, settings: EngineSettings) -> Iterator[nn.Parameter]:
    """Yield the rank's weights whose size is certain before they are read: those in the base's number type."""
    left = set[int]()
    if settings.quantised_experts:
        left = {id(each) for module in model.modules() if is_stack(module) for each in module.parameters()}
    if settings.tensor_parallel_size > 1:  # cut after loading
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        left |= {id(each) for each in head.parameters()}
    return (each for each in model.parameters() if id(each) not in left)


def _check_context(settings: EngineSettings, config: PreTrainedConfig) -> None:
    most = positions_of(config)
    if not 0 < most < settings.context_length:
        return
    why = f"the base has {most} positions; lower it"
    if most == alike_positions(config):
        turns = "the base rotates all requests of a step by the longest one"
        why = f"beyond {most} positions {turns}; lower it to {most}"
    raise UnsupportedBase("contextLength", f"is {settings.context_length}, but {why}")

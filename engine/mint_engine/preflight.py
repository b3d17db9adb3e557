"""Checks of a base before any of its weights are copied or read, using only its small files and the spec."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded, UnsupportedBase
from mint_contracts.settings import EngineSettings
from mint_engine.adapters.adapter import Module
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
from mint_engine.parallel.shares import Share, cuts_of
from mint_engine.residency.slots import slots_bytes


def check_small_files(settings: EngineSettings, folder: Path, subject: str) -> None:
    """Check a base by the files of a folder that does not have its weights yet. Raises a MintError naming `subject`.

    If the base is a GGUF file, the folder has its head.
    """
    files = BaseFiles(folder, next((each.name for each in folder.glob("*.gguf")), None), subject)
    check_start(files)
    config, quantisation = read_config(files)
    check_config(settings, config, subject)
    if settings.quantised_experts and quantisation is None:
        raise nothing_to_keep(subject)
    read_tokenizer(files)


def check_config(settings: EngineSettings, config: PreTrainedConfig, subject: str) -> None:
    """Check a base by its configuration; errors name `subject`.

    Raises UnsupportedBase for features that no engine serves, and for lengths, modules and ranks that the base does
    not have, CapacityExceeded if the cache is too small, or the device for all that will be on it.
    """
    try:
        _check_config(settings, config, subject)
    except LIBRARY_ERRORS as error:  # from values and types that transformers has not checked
        raise UnsupportedBase(subject, f"has an unsupported configuration: {first_line(error)}") from error


def _check_config(settings: EngineSettings, config: PreTrainedConfig, subject: str) -> None:
    text = config.get_text_config()
    _check_context(settings, text)
    cache_shape(text)
    model = empty_model(config, subject)
    routes = route_shape(model)
    shape = shape_for(settings, text, routes)
    pages_in(settings, shape, routes, choose_dtype(settings.dtype))
    modules = find_modules(model, settings.target_modules)
    if settings.quantised_experts and route_shape(model) is None:
        raise nothing_to_keep(subject)
    share = None
    if settings.tensor_parallel_size > 1:
        share = Part(0, settings.tensor_parallel_size, settings.target_modules).cut(model)
    if settings.device != "cpu":
        _check_device(settings, model, modules, share, subject)


def _check_device(
    settings: EngineSettings,
    model: PreTrainedModel,
    modules: Mapping[str, Module],
    share: Share | None,
    subject: str,
) -> None:
    """Raise CapacityExceeded if weights, slots and cache are larger than the free memory of the first rank's GPU.

    `model` has no memory, and with several ranks only the rank's share. Weights whose size is not certain yet are
    left out.
    """
    device, dtype, ranks = choose_device(settings.device), choose_dtype(settings.dtype), settings.tensor_parallel_size
    cuts = cuts_of(modules, share) if share is not None else None
    weights = sum(each.numel() for each in _certain(model, settings)) * dtype.itemsize
    slots = slots_bytes(modules, settings.device_slots, settings.max_rank, dtype, cuts)
    cache = settings.kv_cache_bytes // ranks  # latent attention's is not shared out
    memory = read_memory(device)
    if weights + slots + cache > memory.free:
        raise CapacityExceeded(
            subject,
            f"needs at least {in_units(weights + slots + cache)} of a GPU's memory ({in_units(weights)} for weights, "
            f"{in_units(slots)} for slots, {in_units(cache)} for the cache), and {device} has "
            f"{in_units(memory.free)} of {in_units(memory.total)} free; use larger GPUs or more of them "
            "(tensorParallelSize), or lower deviceSlots, maxRank or kvCacheMemory",
        )


def _certain(model: PreTrainedModel, settings: EngineSettings) -> Iterator[nn.Parameter]:
    """Yield the weights that are in the base's number type, all of them on the first rank."""
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

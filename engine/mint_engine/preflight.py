"""Checks of a base before any of its weights are copied or read, using only its small files and the spec."""

from pathlib import Path

from transformers import PreTrainedConfig

from mint_contracts.errors import UnsupportedBase
from mint_contracts.settings import EngineSettings
from mint_engine.model.base import empty_model
from mint_engine.model.cache_shape import cache_shape, pages_in, shape_for
from mint_engine.model.device import choose_dtype
from mint_engine.model.experts import route_shape
from mint_engine.model.files import LIBRARY_ERRORS, BaseFiles, check_start, first_line, read_config, read_tokenizer
from mint_engine.model.kept import nothing_to_keep
from mint_engine.model.modules import find_modules
from mint_engine.model.positions import alike_positions, positions_of
from mint_engine.parallel.part import Part


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
    not have, CapacityExceeded if the cache is too small.
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
    pages_in(settings, shape_for(settings, text, routes), routes, choose_dtype(settings.dtype))
    find_modules(model, settings.target_modules)
    if settings.quantised_experts and route_shape(model) is None:
        raise nothing_to_keep(subject)
    if settings.tensor_parallel_size > 1:
        Part(0, settings.tensor_parallel_size, settings.target_modules).cut(model)


def _check_context(settings: EngineSettings, config: PreTrainedConfig) -> None:
    most = positions_of(config)
    if not 0 < most < settings.context_length:
        return
    why = f"the base has {most} positions; lower it"
    if most == alike_positions(config):
        turns = "the base rotates all requests of a step by the longest one"
        why = f"beyond {most} positions {turns}; lower it to {most}"
    raise UnsupportedBase("contextLength", f"is {settings.context_length}, but {why}")

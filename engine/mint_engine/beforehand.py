"""What a base is refused for before any of its weights is copied or read: by its small files and the spec alone."""

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
    """A base that errors name so, by the files of a folder that does not hold its weights yet. Raises a MintError.

    Of a GGUF file it holds the head.
    """
    files = BaseFiles(folder, next((each.name for each in folder.glob("*.gguf")), None), subject)
    check_start(files)
    config, quantisation = read_config(files)
    check_config(settings, config, subject)
    if settings.quantised_experts and quantisation is None:
        raise nothing_to_keep(subject)
    read_tokenizer(files)


def check_config(settings: EngineSettings, config: PreTrainedConfig, subject: str) -> None:
    """A base that errors name so, by its configuration.

    Raises UnsupportedBase for what no engine serves of it, and for lengths, modules and ranks that it does not have,
    CapacityExceeded for a cache that is too small.
    """
    try:
        _check_config(settings, config, subject)
    except LIBRARY_ERRORS as error:  # over numbers and kinds that transformers has not looked at
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

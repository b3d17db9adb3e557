"""Chooses the pass for a base's forward and backward: lean if base and machine allow it, otherwise generic."""

from collections.abc import Mapping

import structlog

from mint_engine.adapters.adapter import Module
from mint_engine.kernels.library import find_kernels
from mint_engine.model.base import Base
from mint_engine.model.llama_like import Unlike
from mint_engine.parallel.group import Group
from mint_engine.training.generic_pass import GenericPass
from mint_engine.training.kernels import find_training_kernels
from mint_engine.training.lean_pass import LeanPass

Pass = GenericPass | LeanPass

_log = structlog.get_logger(__name__)


def choose_pass(base: Base, modules: Mapping[str, Module], *, lean: bool = True, group: Group | None) -> Pass:
    """Return the fastest pass that can compute this base; `lean=False` always returns the generic one.

    With a `group`, the base is a rank's share; all ranks of an engine choose alike.
    """
    kernels = find_kernels(base.dtype, base.device) if lean else None
    training = find_training_kernels(base.dtype, base.device)
    if kernels is not None and training is not None:
        try:
            return LeanPass(base, modules, kernels, training, group)
        except Unlike as why:
            _log.info("lean_training_unavailable", architecture=base.architecture, why=str(why))
    return GenericPass(base, modules, group)

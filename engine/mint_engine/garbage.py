"""Garbage collection of processes that compute, during which nothing else runs in them."""

import gc

import structlog

_log = structlog.get_logger(__name__)


def freeze_garbage() -> None:
    """Freeze all objects, those of the base and the libraries: hundreds of thousands.

    A full garbage collection, during which all streams wait, then no longer visits them.
    """
    gc.collect()
    gc.freeze()
    _log.info("settled", objects=gc.get_freeze_count())

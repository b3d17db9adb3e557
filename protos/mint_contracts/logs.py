"""Logging: one JSON event per line on standard error, from a program and from the libraries that it uses."""

import logging
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import structlog

REPEAT_S = 30.0
MOST_TROUBLES = 1_000
_JITTERS = frozenset({"again_in_s"})  # fields that differ from one line of a trouble to the next


class Repeats:
    """Drops warnings and errors that say what one of the last `REPEAT_S` seconds said, fields and traceback included.

    What fails is tried again, for each base or engine each second, as long as a Redis or a store is away, which fills
    disks with one trouble and hides the others. Its next line says in `repeats` how many were dropped since the last.
    At most `MOST_TROUBLES` are remembered.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._troubles: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when logged, and how many dropped since

    def __call__(
        self, _logger: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Return the event, or raise DropEvent. It must not have a timestamp yet, and its traceback be formatted."""
        if method in {"debug", "info"}:
            return event
        trouble, now = repr(sorted((name, event[name]) for name in event.keys() - _JITTERS)), self._now()
        with self._lock:
            logged, dropped = self._troubles.get(trouble, (None, 0))
            if logged is not None and now - logged < REPEAT_S:
                self._troubles[trouble] = logged, dropped + 1
                raise structlog.DropEvent
            self._troubles[trouble] = now, 0
            self._troubles.move_to_end(trouble)
            if len(self._troubles) > MOST_TROUBLES:
                self._troubles.popitem(last=False)
        return {**event, "repeats": dropped} if dropped else event


def log_as_json(*, level: int = logging.WARNING, quiet: tuple[str, ...] = (), **fields: str) -> None:
    """Set logging up for the process; every line has `fields`, and what repeats is dropped (see `Repeats`).

    `level` applies to the standard library's loggers (structlog's own log from INFO); `quiet` loggers only warn.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        lambda _logger, _method, event: {**fields, **event},
    ]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            Repeats(),
            *shared,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processor=structlog.processors.JSONRenderer(),
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in quiet:
        logging.getLogger(name).setLevel(logging.WARNING)

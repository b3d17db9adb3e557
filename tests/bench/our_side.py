"""Our engines' half of the protocol: commands are executed one after another on the loop that the engine runs on."""

import asyncio
import logging
import sys
import time
from collections.abc import Callable

import msgspec
import structlog

from tests.bench.our_setup import Setup
from tests.bench.protocol import requests


def serve(engine: Callable[[Setup], object]) -> None:
    """Start the engine when told to, then execute commands, which are its methods, until standard input ends."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    asyncio.run(_serve(engine, msgspec.json.decode(sys.argv[1], type=Setup)))


async def _serve(engine: Callable[[Setup], object], setup: Setup) -> None:
    loop, asked = asyncio.get_running_loop(), requests()
    started: object = None
    while (got := await loop.run_in_executor(None, next, asked, None)) is not None:
        request, send = got
        try:
            if request["do"] == "start":
                began = time.perf_counter()
                started = engine(setup)
                send({"ok": {"seconds": time.perf_counter() - began}})
            else:
                send({"ok": await getattr(started, request.pop("do"))(**request)})
        except Exception as error:
            logging.exception("command failed")
            send({"error": f"{type(error).__name__}: {error}"})

"""The gateway process: serves until SIGTERM, then drains."""

import asyncio
import resource
import signal
from contextlib import suppress

from mint_contracts.functions import connect
from mint_contracts.scraping import expose
from mint_contracts.settings import DRAIN_S
from mint_gateway.http.door import listen
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.server import OPEN, Limits, serve


async def run(
    port: int, http_port: int, metrics_port: int, security: DoorSecurity = OPEN, drain_s: float = DRAIN_S
) -> None:
    """Serve gRPC, HTTP and metrics, on one port each, until SIGTERM or SIGINT; then drain for at most `drain_s`.

    Raises the exception of a background task that ended early.
    """
    _raise_limit_of_files()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    redis = connect()
    try:
        async with serve(redis, f"[::]:{port}", listen("", http_port), Limits(grace_s=drain_s), security) as gateway:
            metrics, thread = expose(metrics_port, gateway.metrics.registry)
            waiting = asyncio.create_task(ended.wait())
            await asyncio.wait([waiting, *gateway.lasting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        metrics.shutdown()
        thread.join()
        for task in gateway.lasting:
            if not task.cancelled() and (defect := task.exception()):
                raise defect
    finally:
        await redis.aclose()


def _raise_limit_of_files() -> None:
    """Allow as many open files as the process may have: containers often begin with 1,024, and doors accept more."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # a system may refuse a soft limit as high as its hard one
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

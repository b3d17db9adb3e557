"""The `mint-gateway` program: reads the environment, serves until SIGTERM, drains."""

import argparse
import asyncio
import signal

from prometheus_client import start_http_server

from mint_contracts.functions import connect
from mint_contracts.logs import log_as_json
from mint_contracts.settings import GATEWAY_PORT, METRICS_PORT
from mint_gateway.server import Limits, serve


def main() -> None:
    """Run the gateway; the placement map comes from MINT_REDIS_URL, MINT_REDIS_PASSWORD, MINT_REDIS_CA_FILE."""
    parser = argparse.ArgumentParser(prog="mint-gateway", description=main.__doc__)
    parser.add_argument("--port", type=int, default=GATEWAY_PORT, help="gRPC (default %(default)s, 0: a free one)")
    parser.add_argument("--metrics-port", type=int, default=METRICS_PORT, help="Prometheus (default %(default)s)")
    arguments = parser.parse_args()
    log_as_json()
    asyncio.run(_run(arguments.port, arguments.metrics_port))


async def _run(port: int, metrics_port: int) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    redis = connect()
    try:
        async with serve(redis, f"[::]:{port}", Limits()) as gateway:
            metrics, thread = start_http_server(metrics_port, registry=gateway.metrics.registry)
            waiting = asyncio.create_task(ended.wait())
            await asyncio.wait([waiting, gateway.following], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        metrics.shutdown()
        thread.join()
        if not gateway.following.cancelled() and (defect := gateway.following.exception()):
            raise defect
    finally:
        await redis.aclose()


if __name__ == "__main__":
    main()

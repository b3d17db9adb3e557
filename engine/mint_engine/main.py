"""The `mint-engine` program: serves one resident base model and the adapters that the placement map assigns."""

import os
import sys
from typing import TYPE_CHECKING

from mint_contracts.ending import end_on_signal
from mint_contracts.importing import without_collecting

if TYPE_CHECKING:
    from mint_engine.environment import Start


def main() -> None:
    """Serve until SIGTERM; what to serve comes from the environment (see mint_contracts.settings)."""
    end_on_signal()
    import argparse  # everything else is imported only now

    from mint_contracts.logs import log_as_json
    from mint_contracts.settings import ENGINE_PORT, METRICS_PORT, RANKS_PORT
    from mint_engine.environment import confine, read_environment
    from mint_engine.parallel.fork_client import fork_client

    parser = argparse.ArgumentParser(prog="mint-engine", description=main.__doc__)
    parser.add_argument("--port", type=int, default=ENGINE_PORT, help="gRPC (default %(default)s)")
    parser.add_argument("--metrics-port", type=int, default=METRICS_PORT, help="Prometheus (default %(default)s)")
    parser.add_argument(
        "--ranks-port", type=int, default=RANKS_PORT, help="an engine's other nodes (default %(default)s)"
    )
    arguments = parser.parse_args()
    try:
        start = read_environment(arguments.port, arguments.metrics_port, arguments.ranks_port)
    except ValueError as error:
        parser.exit(2, f"mint-engine: {error}\n")
    log_as_json(engine=start.engine, base_model=start.settings.base_model)
    confine(start.cache)
    if start.node > 0 or start.settings.ranks_per_node > 1:
        fork_client()  # its server imports the same modules as this process, at the same time
    code = _lead(start) if start.node == 0 else _work(start)
    sys.stderr.flush()
    # A thread may still wait for storage or read a base, for minutes; its result is no longer wanted.
    os._exit(code)


def _lead(start: "Start") -> int:
    import asyncio

    with without_collecting():  # torch and transformers read the environment when they are imported
        from mint_engine.process import run

    return asyncio.new_event_loop().run_until_complete(run(start))


def _work(start: "Start") -> int:
    with without_collecting():
        from mint_engine.parallel.worker import run

    return run(start)


if __name__ == "__main__":
    main()

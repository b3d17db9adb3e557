"""The `mint-engine` program: one base model, resident, and the adapters that the placement map asks for."""

import argparse
import asyncio
import os
import sys

from mint_contracts.logs import log_as_json
from mint_contracts.settings import ENGINE_PORT, METRICS_PORT
from mint_engine.environment import confine, read_environment


def main() -> None:
    """Serve until SIGTERM; what to serve comes from the environment (see mint_contracts.settings)."""
    parser = argparse.ArgumentParser(prog="mint-engine", description=main.__doc__)
    parser.add_argument("--port", type=int, default=ENGINE_PORT, help="gRPC (default %(default)s)")
    parser.add_argument("--metrics-port", type=int, default=METRICS_PORT, help="Prometheus (default %(default)s)")
    arguments = parser.parse_args()
    try:
        start = read_environment(arguments.port, arguments.metrics_port)
    except ValueError as error:
        parser.exit(2, f"mint-engine: {error}\n")
    log_as_json(engine=start.engine, base_model=start.settings.base_model)
    confine(start.cache)
    from mint_engine.process import run  # torch and transformers read the environment when they are imported

    code = asyncio.new_event_loop().run_until_complete(run(start))
    sys.stderr.flush()
    # A thread may still wait for storage or read a base, for minutes; nothing that it does is wanted any more.
    os._exit(code)


if __name__ == "__main__":
    main()

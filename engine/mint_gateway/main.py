"""The `mint-gateway` program."""

from mint_contracts.ending import end_on_signal
from mint_contracts.importing import without_collecting


def main() -> None:
    """Run MinT's gateway until SIGTERM. It reads the placement map from the Redis of MINT_REDIS_URL,
    MINT_REDIS_USERNAME, MINT_REDIS_PASSWORD and MINT_REDIS_CA_FILE.
    """
    end_on_signal()
    import os

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else each client without TLS logs a line that is not JSON
    import argparse  # imports come late so that signals are handled from the start
    import asyncio
    from pathlib import Path

    with without_collecting():
        from mint_contracts.errors import MintError
        from mint_contracts.logs import log_as_json
        from mint_contracts.settings import DRAIN_S, GATEWAY_HTTP_PORT, GATEWAY_PORT, METRICS_PORT
        from mint_gateway.process import run
        from mint_gateway.security.door_security import DoorSecurity

    parser = argparse.ArgumentParser(prog="mint-gateway", description=main.__doc__)
    parser.add_argument(
        "--port", type=int, default=GATEWAY_PORT, help="port for gRPC (default %(default)s, 0: a free one)"
    )
    parser.add_argument(
        "--http-port", type=int, default=GATEWAY_HTTP_PORT, help="port for OpenAI's API (default %(default)s)"
    )
    parser.add_argument(
        "--metrics-port", type=int, default=METRICS_PORT, help="port for Prometheus (default %(default)s)"
    )
    parser.add_argument(
        "--tls",
        type=Path,
        metavar="FOLDER",
        help="serve gRPC and HTTP over TLS with this folder's tls.crt and tls.key (default: plain text)",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="FOLDER",
        help="require one of the keys in this folder, one file per key (default: open to all)",
    )
    parser.add_argument(
        "--scopes",
        type=Path,
        metavar="FOLDER",
        help="folder of a scopes.json, which says what each key may access (default: everything)",
    )
    parser.add_argument(
        "--drain-seconds", type=int, default=DRAIN_S, help="for requests after SIGTERM (default %(default)s)"
    )
    arguments = parser.parse_args()
    log_as_json()
    try:
        security = DoorSecurity.by(arguments.tls, arguments.keys, arguments.scopes)
    except MintError as error:
        parser.exit(1, f"mint-gateway: {error}\n")
    ports = arguments.port, arguments.http_port, arguments.metrics_port
    asyncio.run(run(*ports, security, arguments.drain_seconds))


if __name__ == "__main__":
    main()

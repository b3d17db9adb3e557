"""The `mint-gateway` program: from a name to the engine that answers."""

from mint_contracts.ending import end_when_told


def main() -> None:
    """Serve until SIGTERM; the placement map comes from MINT_REDIS_URL, MINT_REDIS_PASSWORD, MINT_REDIS_CA_FILE."""
    end_when_told()
    import os

    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # or each client that speaks no TLS is a line that is no JSON
    import argparse  # and all else only now
    import asyncio
    from pathlib import Path

    from mint_contracts.errors import MintError
    from mint_contracts.logs import log_as_json
    from mint_contracts.settings import GATEWAY_HTTP_PORT, GATEWAY_PORT, METRICS_PORT
    from mint_gateway.certificate import read_certificate
    from mint_gateway.mounted import Mounted
    from mint_gateway.process import run

    parser = argparse.ArgumentParser(prog="mint-gateway", description=main.__doc__)
    parser.add_argument("--port", type=int, default=GATEWAY_PORT, help="gRPC (default %(default)s, 0: a free one)")
    parser.add_argument("--http-port", type=int, default=GATEWAY_HTTP_PORT, help="OpenAI's API (default %(default)s)")
    parser.add_argument("--metrics-port", type=int, default=METRICS_PORT, help="Prometheus (default %(default)s)")
    parser.add_argument(
        "--tls",
        type=Path,
        metavar="FOLDER",
        help="serve gRPC and HTTP by TLS, with its tls.crt and tls.key (default: plain)",
    )
    arguments = parser.parse_args()
    try:
        certificate = Mounted(arguments.tls, read_certificate) if arguments.tls else None
    except MintError as error:
        parser.exit(1, f"mint-gateway: {error}\n")
    log_as_json()
    asyncio.run(run(arguments.port, arguments.http_port, arguments.metrics_port, certificate))


if __name__ == "__main__":
    main()

"""The `mint-operator` program: custom resources in, engines, placements and statuses out."""

from mint_contracts.ending import end_on_signal
from mint_contracts.importing import without_collecting


def main() -> None:
    """Run MinT's operator until SIGTERM. It takes no options; the chart sets its environment variables.

    Exits with 0 after a signal, with 1 when leadership was lost or settings are missing.
    """
    end_on_signal()
    import argparse  # and all else only now
    import asyncio
    import logging
    import sys

    description = (main.__doc__ or "").partition("\n")[0]
    argparse.ArgumentParser(prog="mint-operator", description=description).parse_args()
    with without_collecting():
        import structlog

        from mint_contracts.errors import MintError
        from mint_contracts.logs import log_as_json
        from mint_operator import settings
        from mint_operator.process import run

    log_as_json(level=logging.INFO, quiet=("kopf", "aiohttp", "asyncio", "urllib3"))
    try:
        code = asyncio.run(run(settings.read()))
    except MintError as error:
        structlog.get_logger().error("cannot start", error=str(error))
        code = 1
    sys.exit(code)


if __name__ == "__main__":
    main()

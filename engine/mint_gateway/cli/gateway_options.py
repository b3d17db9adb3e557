"""How the verbs that ask a gateway reach it."""

import argparse
import math
import os
import sys
from pathlib import Path

from mint_contracts.durations import span
from mint_contracts.errors import MintError
from mint_contracts.escaping import escape_controls
from mint_contracts.settings import GATEWAY_PORT
from mint_gateway.client import Client
from mint_gateway.dialling import Trust, read_authorities

GATEWAY = "MINT_GATEWAY"  # "host:port"
API_KEY = "MINT_API_KEY"  # not an option, which would show it to anyone who lists processes


def options() -> argparse.ArgumentParser:
    """Return a parent parser with the options for reaching a gateway."""
    way = argparse.ArgumentParser(add_help=False)
    way.add_argument(
        "--gateway",
        metavar="HOST:PORT",
        default=os.environ.get(GATEWAY) or f"127.0.0.1:{GATEWAY_PORT}",
        help=f"the gateway (default: ${GATEWAY} if set; now %(default)s); if it requires a key, set ${API_KEY}",
    )
    way.add_argument("--tls", action="store_true", help="use TLS, trusting the public CAs")
    way.add_argument("--ca", type=Path, metavar="FILE", help="use TLS, trusting the CA certificates in FILE (PEM)")
    way.add_argument(
        "--tls-server-name",
        metavar="NAME",
        default="",
        help="use TLS, with this name in the gateway's certificate (default: HOST)",
    )
    way.add_argument("--base", metavar="NS/NAME", default="", help="the base model, if several are served")
    way.add_argument(
        "--patience",
        type=seconds,
        metavar="SECONDS",
        default=30.0,
        help="how long to retry, in seconds; inf: for ever (default %(default)g)",
    )
    return way


def seconds(text: str) -> float:
    """Parse a duration for argparse; "inf" means forever."""
    number = float(text)
    if not number >= 0:  # also refuses nan
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds from 0 on")
    return number


def by_tls(parsed: argparse.Namespace) -> list[str]:
    """Return the given options that ask for TLS."""
    asked = {"--tls": parsed.tls, "--ca": parsed.ca, "--tls-server-name": parsed.tls_server_name}
    return [option for option, value in asked.items() if value]


def reach(parsed: argparse.Namespace) -> Client:
    """Return a client of the gateway that the options name. Raises MintError if the CA file or key is unusable."""
    trust = None
    if by_tls(parsed):
        trust = Trust(read_authorities(parsed.ca) if parsed.ca else None, parsed.tls_server_name)
    key = os.environ.get(API_KEY, "")
    return Client(parsed.gateway, patience_s=parsed.patience, trust=trust, key=key, tell=tell_of_retries)


def tell_of_retries(error: MintError, left_s: float) -> None:
    """Say to a person who waits what for, and how much longer."""
    if sys.stderr.isatty():
        how_long = f" for {span(left_s)} more (--patience)" if math.isfinite(left_s) else ""
        line = f"mint: trying again{how_long}: {error.reason}: {error}"
        print(escape_controls(line), file=sys.stderr, flush=True)

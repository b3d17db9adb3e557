"""How every verb reports errors."""

import argparse
import sys

import grpc

from mint_contracts.errors import MintError
from mint_contracts.escaping import escape_controls
from mint_contracts.settings import GATEWAY_PORT
from mint_gateway.cli.gateway_options import GATEWAY, by_tls
from mint_gateway.dialling import (
    expired,
    hung_up,
    is_here,
    misnamed,
    spoke_no_http2,
    spoke_no_tls,
    unreached,
    untrusted,
)


def report_error(error: MintError, options: argparse.Namespace) -> None:
    """Print an error as one line on stderr, with advice if other options may reach the gateway."""
    print(escape_controls(f"mint: {error.reason}: {error}{_advice(error, options)}"), file=sys.stderr)


def _advice(error: MintError, options: argparse.Namespace) -> str:
    call = error.__cause__
    if not isinstance(call, grpc.aio.AioRpcError):
        return ""
    given = by_tls(options)
    if given and spoke_no_tls(call):
        return f"; the gateway may not speak TLS: try without {' and '.join(given)}"
    if not given and hung_up(call):
        return "; does the gateway speak TLS? Try --tls, or --ca FILE if its certificate is from a private CA"
    if expired(call):
        return "; have the gateway's certificate, or that of its CA, renewed"
    if untrusted(call):
        return "; give the CA that signed the gateway's certificate: --ca FILE"
    if misnamed(call):
        return "; give the name that the gateway's certificate has: --tls-server-name NAME"
    if spoke_no_http2(call):
        return f"; is that its HTTP port? Its gRPC port is {GATEWAY_PORT} by default"
    if unreached(call):
        forward = f"; or forward its port: kubectl port-forward -n mint-system service/mint-gateway {GATEWAY_PORT}"
        return f"; give the gateway's address: --gateway, or ${GATEWAY}{forward if is_here(options.gateway) else ''}"
    return ""

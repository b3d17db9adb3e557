"""Connecting a client to a gateway, in plain text or over TLS, and recognising errors that no retry can fix."""

import asyncio
import ipaddress
import ssl
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import msgspec

from mint_contracts.errors import InvalidRequest, SourceNotFound, SourceUnavailable
from mint_gateway.security.pem import check_certificates

AUTHORIZATION = "authorization"  # carries the key, both in gRPC metadata and in HTTP headers
MAX_MESSAGE_BYTES = 64 << 20  # a map of 64,000 placements is about 15 MB

# A call whose gateway has vanished silently fails after both times, rather than waiting for its deadline or for ever.
# The second is long because a ping waits behind the data that a slow link is still carrying.
PING_MS, PING_TIMEOUT_MS = 30_000, 60_000

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", PING_MS),
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a wave may be silent for minutes
    # As `Persistence` retries: by gRPC's own pauses, up to two minutes, calls in between would fail untried.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)

HELLO_S = 5.0  # for a server to complete a TLS handshake

# gRPC's messages for a certificate that does not verify, in particular an expired one, and for one with another name.
_UNTRUSTED, _MISNAMED = "CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed"
_EXPIRED = f"{_UNTRUSTED}: certificate has expired"
# gRPC's messages for a server that speaks another protocol than HTTP/2, in plain text and over TLS.
_NO_HTTP2 = ("Failed parsing HTTP/2", "missing selected ALPN property")
# How gRPC's own connection errors begin; a gateway's errors about its engines begin differently.
_UNREACHED = "failed to connect to all addresses"
_UNRESOLVED = "errors resolving"


class Trust(msgspec.Struct, frozen=True):
    """How a client verifies the gateway.

    `authorities` (PEM) sign its certificate; None means gRPC's default roots. `server_name` is the certificate's name
    if the gateway is reached under another, for example through `kubectl port-forward`.
    """

    authorities: bytes | None
    server_name: str = ""


def dial(target: str, trust: Trust | None) -> grpc.aio.Channel:
    """Return a channel to "host:port", over TLS if `trust` is given.

    It uses the proxy in `grpc_proxy`, `https_proxy` or `http_proxy`, unless `no_proxy` names the host or the host is
    this machine, where a port-forward ends: no proxy can reach that. Go's clients do the same.
    """
    options: list[tuple[str, int | str]] = [*_OPTIONS]
    if is_here(target):
        options.append(("grpc.enable_http_proxy", 0))
    if trust is None:
        return grpc.aio.insecure_channel(target, options=options)
    if trust.server_name:
        options.append(("grpc.ssl_target_name_override", trust.server_name))
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(trust.authorities), options=options)


def is_here(target: str) -> bool:
    """Return whether "host:port" is localhost or a loopback address."""
    with suppress(ValueError):  # a name, or not a "host:port", which gRPC reports
        host = urlsplit(f"//{target}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False


def bearing(key: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata that carries the key; empty for no key. Raises InvalidRequest, which omits the key."""
    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest("key", "holds characters that are not printable ASCII")
    return ((AUTHORIZATION, f"Bearer {key}"),) if key else ()


async def is_hopeless(error: grpc.aio.AioRpcError, target: str, trust: Trust | None) -> bool:
    """Return whether every retry would fail the same way: the server at `target` is not what the client expects.

    A TLS server closes a plain-text connection, but so does a forwarder whose server is not up yet; a TLS handshake
    tells the two apart.
    """
    if untrusted(error) or misnamed(error) or spoke_no_tls(error) or spoke_no_http2(error):
        return True
    return trust is None and hung_up(error) and await _speaks_tls(target)


def untrusted(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the server's certificate does not verify, most often by an authority that is not trusted."""
    return _UNTRUSTED in _why_unreached(error)


def expired(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the server's certificate, or its authority's, has expired; it is `untrusted`, too."""
    return _EXPIRED in _why_unreached(error)


def misnamed(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the server's certificate has another name than the one that the client asked for."""
    return _MISNAMED in _why_unreached(error)


def hung_up(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the server closed the connection at once, as a TLS server does with a plain-text client."""
    return _why_unreached(error).endswith(": Socket closed")


def spoke_no_tls(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the server answered a TLS client in plain text."""
    return "WRONG_VERSION_NUMBER" in _why_unreached(error)


def spoke_no_http2(error: grpc.aio.AioRpcError) -> bool:
    """Return whether the server does not speak HTTP/2, which gRPC needs; the gateway's own HTTP port does not."""
    return any(sign in _why_unreached(error) for sign in _NO_HTTP2)


def unreached(error: grpc.aio.AioRpcError) -> bool:
    """Return whether nothing was found at the address, or the address itself was not found."""
    details = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith((_UNREACHED, _UNRESOLVED))


async def _speaks_tls(target: str) -> bool:
    """Return whether "host:port" completes a TLS handshake, with any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        place = urlsplit(f"//{target}")
        async with asyncio.timeout(HELLO_S):
            _, writer = await asyncio.open_connection(place.hostname, place.port, ssl=context)
    except (OSError, ValueError):  # also TimeoutError and SSLError; ValueError: target is not a "host:port"
        return False
    writer.transport.abort()
    return True


def _why_unreached(error: grpc.aio.AioRpcError) -> str:
    details = error.details() or ""
    return details if error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith(_UNREACHED) else ""


def read_authorities(path: Path) -> bytes:
    """Return the certificates of a PEM file. Raises SourceNotFound, SourceUnavailable or CorruptFile."""
    subject = f"file {str(path)!r}"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise SourceNotFound(subject, "does not exist") from None
    except OSError as error:
        raise SourceUnavailable(subject, f"could not be read ({error.strerror})") from None
    check_certificates(subject, text)
    return text

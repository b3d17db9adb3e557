"""How a client reaches a gateway, in plain text or by TLS, and what tells that it never will."""

import asyncio
import ipaddress
import ssl
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import msgspec

from mint_contracts.errors import InvalidRequest, SourceNotFound, SourceUnavailable
from mint_gateway.pem import check_certificates

AUTHORIZATION = "authorization"  # what bears a key, of gRPC's metadata as of HTTP's headers
MAX_MESSAGE_BYTES = 64 << 20  # a map of 64,000 placements is about 15 MB

HELLO_S = 5.0  # for a server to answer a greeting by TLS

# What gRPC says of a certificate that an authority vouches for whom nobody trusts, and of one with another name.
_UNTRUSTED, _MISNAMED = "CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed"
# What it says of who answers in another protocol than HTTP/2, in plain text and by TLS.
_NO_HTTP2 = ("Failed parsing HTTP/2", "missing selected ALPN property")
# How it begins to say why there is no connection; what a gateway tells of its engines' begins otherwise.
_UNREACHED = "failed to connect to all addresses"


class Trust(msgspec.Struct, frozen=True):
    """By what a client knows the gateway that it means.

    `authorities` (PEM) vouch for its certificate, None being those that gRPC knows; `server_name` is the name that it
    bears, where it is reached by another, as through `kubectl port-forward`.
    """

    authorities: bytes | None = None
    server_name: str = ""


def dial(target: str, trust: Trust | None) -> grpc.aio.Channel:
    """A channel to "host:port", by TLS where it has somebody to trust.

    It goes through the proxy that `grpc_proxy`, `https_proxy` or `http_proxy` names, unless `no_proxy` names the host
    or it is this machine, where a port-forward ends: no proxy reaches that. Go's clients do likewise.
    """
    options: list[tuple[str, int | str]] = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    if _is_here(target):
        options.append(("grpc.enable_http_proxy", 0))
    if trust is None:
        return grpc.aio.insecure_channel(target, options=options)
    if trust.server_name:
        options.append(("grpc.ssl_target_name_override", trust.server_name))
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(trust.authorities), options=options)


def _is_here(target: str) -> bool:
    """Whether a "host:port" is of this machine alone."""
    with suppress(ValueError):  # a name, or no "host:port", of which gRPC tells
        host = urlsplit(f"//{target}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    return False


def bearing(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata by which each call bears a key; of none, nothing. Raises InvalidRequest, without the key."""
    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest("key", "holds characters that are not printable ASCII")
    return ((AUTHORIZATION, f"Bearer {key}"),) if key else ()


async def is_hopeless(error: grpc.aio.AioRpcError, target: str, trust: Trust | None) -> bool:
    """Whether all further tries would fail alike: who answers at `target` is not what the client takes it for.

    A server that speaks TLS closes a connection in plain text, as also does who forwards to one that is not up yet;
    so it is asked.
    """
    if untrusted(error) or misnamed(error) or spoke_no_tls(error) or spoke_no_http2(error):
        return True
    return trust is None and hung_up(error) and await _speaks_tls(target)


def untrusted(error: grpc.aio.AioRpcError) -> bool:
    """Whether nobody whom the client trusts vouches for the server's certificate."""
    return _UNTRUSTED in _why_unreached(error)


def misnamed(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server's certificate bears another name than the one that the client asked for."""
    return _MISNAMED in _why_unreached(error)


def hung_up(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server closed the connection at once, as one that speaks TLS does on a client in plain text."""
    return _why_unreached(error).endswith(": Socket closed")


def spoke_no_tls(error: grpc.aio.AioRpcError) -> bool:
    """Whether what the server said to a client that speaks TLS was none."""
    return "WRONG_VERSION_NUMBER" in _why_unreached(error)


def spoke_no_http2(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server speaks no HTTP/2, in which gRPC is spoken, as the gateway's own port for HTTP."""
    return any(sign in _why_unreached(error) for sign in _NO_HTTP2)


async def _speaks_tls(target: str) -> bool:
    """Whether who listens at "host:port" answers by TLS, whoever it is."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        place = urlsplit(f"//{target}")
        async with asyncio.timeout(HELLO_S):
            _, writer = await asyncio.open_connection(place.hostname, place.port, ssl=context)
    except (OSError, ValueError):  # a TimeoutError or SSLError, too; or a target that is no "host:port"
        return False
    writer.transport.abort()
    return True


def _why_unreached(error: grpc.aio.AioRpcError) -> str:
    details = error.details() or ""
    return details if error.code() is grpc.StatusCode.UNAVAILABLE and details.startswith(_UNREACHED) else ""


def read_authorities(path: Path) -> bytes:
    """The certificates of a file in PEM. Raises SourceNotFound, SourceUnavailable or CorruptFile."""
    subject = f"file {str(path)!r}"
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise SourceNotFound(subject, "does not exist") from None
    except OSError as error:
        raise SourceUnavailable(subject, f"could not be read ({error.strerror})") from None
    check_certificates(subject, text)
    return text

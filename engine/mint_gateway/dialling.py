"""How a client reaches a gateway, in plain text or by TLS."""

from pathlib import Path

import grpc
import msgspec

from mint_contracts.errors import InvalidRequest, SourceNotFound, SourceUnavailable
from mint_gateway.keys import AUTHORIZATION
from mint_gateway.pem import check_certificates

MAX_MESSAGE_BYTES = 64 << 20  # a map of 64,000 placements is about 15 MB

# What gRPC says of a server that is not the one that was meant: waiting mends nothing.
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification Check failed")
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
    """A channel to "host:port", by TLS where it has somebody to trust."""
    options: list[tuple[str, int | str]] = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)]
    if trust is None:
        return grpc.aio.insecure_channel(target, options=options)
    if trust.server_name:
        options.append(("grpc.ssl_target_name_override", trust.server_name))
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(trust.authorities), options=options)


def bearing(key: str) -> tuple[tuple[str, str], ...]:
    """The metadata by which each call bears a key; of none, nothing. Raises InvalidRequest, without the key."""
    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest("key", "holds what is no printable ASCII")
    return ((AUTHORIZATION, f"Bearer {key}"),) if key else ()


def untrusted(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server showed a certificate that the client does not trust."""
    return any(sign in (error.details() or "") for sign in _UNTRUSTED)


def hung_up(error: grpc.aio.AioRpcError) -> bool:
    """Whether the server closed the connection at once, as one that speaks TLS does on a client in plain text."""
    return _why_unreached(error).endswith(": Socket closed")


def spoke_no_tls(error: grpc.aio.AioRpcError) -> bool:
    """Whether what the server said to a client that speaks TLS was none."""
    return "WRONG_VERSION_NUMBER" in _why_unreached(error)


def _why_unreached(error: grpc.aio.AioRpcError) -> str:
    said = error.details() or ""
    return said if error.code() is grpc.StatusCode.UNAVAILABLE and said.startswith(_UNREACHED) else ""


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

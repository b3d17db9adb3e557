"""The gateway's own certificate, from a Secret of type kubernetes.io/tls, as both doors present it.

Each new connection uses the certificate that was read last; existing connections keep theirs.
"""

import ssl
from asyncio.sslproto import SSLProtocol
from dataclasses import dataclass
from pathlib import Path

import grpc

from mint_contracts.errors import CorruptFile, SourceNotFound
from mint_gateway.security.mounted import Files, Mounted
from mint_gateway.security.pem import check_certificates

CHAIN, KEY = "tls.crt", "tls.key"
TLS_BUFFER = 32 << 10  # of each connection of asyncio's, whose own 256 KiB let clients without a key fill the memory


@dataclass(frozen=True)
class Certificate:
    """A certificate chain and the private key of its first certificate, in PEM, with a TLS context for them."""

    chain: bytes
    key: bytes
    context: ssl.SSLContext


def read_certificate(folder: Path, files: Files) -> Certificate:
    """Return the folder's certificate. Raises SourceNotFound or CorruptFile, which name the file."""
    for name in (CHAIN, KEY):
        if name not in files:
            raise SourceNotFound(str(folder / name), "does not exist; mount a Secret of type kubernetes.io/tls")
    check_certificates(str(folder / CHAIN), files[CHAIN])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(folder / CHAIN, folder / KEY, password="")  # so that OpenSSL does not prompt for one
    except (ssl.SSLError, OSError) as error:
        if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
            message = f"is not the key of the certificate in {CHAIN}; replace both"
            raise CorruptFile(str(folder / KEY), message) from None
        raise CorruptFile(str(folder / KEY), f"is not a PEM private key without a password ({error})") from None
    return Certificate(files[CHAIN], files[KEY], context)


def grpc_credentials(mounted: Mounted[Certificate]) -> grpc.ServerCredentials:
    """Return a gRPC server's credentials; gRPC's own threads fetch the newest certificate for each new connection."""

    def now() -> grpc.ServerCertificateConfiguration:
        certificate = mounted.now
        return grpc.ssl_server_certificate_configuration([(certificate.key, certificate.chain)])

    return grpc.dynamic_ssl_server_credentials(now(), now)


def http_context(mounted: Mounted[Certificate]) -> ssl.SSLContext:
    """Return an HTTP server's TLS context, which each new connection replaces with the newest one.

    Also gives TLS connections of the whole process smaller buffers.
    """
    SSLProtocol.max_size = TLS_BUFFER

    def give_way(connection: ssl.SSLSocket | ssl.SSLObject, _name: str, _context: ssl.SSLContext) -> None:
        connection.context = mounted.now.context

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = give_way  # called whether or not the client names a server
    return context

"""Certificates in PEM (RFC 7468)."""

import ssl

from mint_contracts.errors import CorruptFile


def check_certificates(subject: str, text: bytes) -> None:
    """Raise CorruptFile, about `subject`, unless the text holds certificates."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text.decode())
    except (ssl.SSLError, ValueError) as error:  # ValueError: it is not UTF-8, or empty
        raise CorruptFile(subject, f"does not hold a valid PEM certificate ({error})") from None

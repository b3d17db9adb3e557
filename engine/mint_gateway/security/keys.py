"""API keys (bearer tokens) from a Secret with one entry per key, named after the client that it was given to.

Only digests of keys are kept, and keys are never logged.
"""

import hashlib
import hmac
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import structlog

from mint_contracts.errors import Unauthenticated
from mint_gateway.dialling import AUTHORIZATION
from mint_gateway.security.mounted import Files

# The name of the current request's key; empty if the gateway requires none.
caller: ContextVar[str] = ContextVar("caller", default="")
# The same, but also empty if it is the only key: then there is nobody to leave a share of the gateway to.
sharer: ContextVar[str] = ContextVar("sharer", default="")

_log = structlog.get_logger()


@dataclass(frozen=True)
class Keys:
    """The digest of each key, by the key's name."""

    digests: Mapping[str, bytes]

    def bearer(self, authorization: str | None) -> str:
        """Return the name of the key in an Authorization header. Raises Unauthenticated if missing or unknown."""
        scheme, _, key = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "holds no key; send 'Bearer KEY' (OpenAI's clients take it as api_key, mint as MINT_API_KEY)"
            raise Unauthenticated(AUTHORIZATION, message)
        asked, found = _digest(key.strip().encode(errors="replace")), ""
        for name, digest in self.digests.items():
            if hmac.compare_digest(digest, asked):  # no early exit: the time taken must not show which one it was
                found = name
        if not found:
            raise Unauthenticated(AUTHORIZATION, "holds an unknown key; check it")
        return found


def read_keys(folder: Path, files: Files) -> Keys:
    """Return the keys in the files. A key that no client could send is logged and left out."""
    digests = {}
    for name, content in files.items():
        key = content.strip()
        if not (key.isascii() and key.decode(errors="replace").isprintable() and b" " not in key and key):
            _log.error("key cannot be used: it must be printable ASCII without spaces", file=str(folder / name))
        else:
            digests[name] = _digest(key)
    _log.info("keys loaded", clients=sorted(digests))
    return Keys(digests)


def opaque(client: str) -> str:
    """Return what engines may know of a client's name: enough to tell clients apart. Empty for an empty name."""
    return client and hashlib.blake2b(client.encode(), digest_size=16).hexdigest()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

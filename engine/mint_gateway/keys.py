"""Who may ask: bearer keys, from a Secret each of whose entries is one, named for whom it was given to.

Keys themselves are neither kept nor logged, only their digests: where several are known, each is compared.
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
from mint_gateway.mounted import Files

# Whose key the request that is answered here bears; empty where none is asked for.
caller: ContextVar[str] = ContextVar("caller", default="")

_log = structlog.get_logger()


@dataclass(frozen=True)
class Keys:
    """The digest of each one's key, by its name."""

    digests: Mapping[str, bytes]

    def bearer(self, authorization: str | None) -> str:
        """Whose key this is. Raises Unauthenticated for none, and for one that is not known."""
        scheme, _, key = (authorization or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "holds no key; send 'Bearer KEY' (OpenAI's clients take it as api_key, mint as MINT_API_KEY)"
            raise Unauthenticated(AUTHORIZATION, message)
        asked, found = _digest(key.strip().encode(errors="replace")), ""
        for name, digest in self.digests.items():
            if hmac.compare_digest(digest, asked):  # goes on: how long it takes tells nobody which one it was
                found = name
        if not found:
            raise Unauthenticated(AUTHORIZATION, "holds an unknown key; check it")
        return found


def read_keys(folder: Path, files: Files) -> Keys:
    """The keys in the files. One that no client could send opens nothing, and the log says so."""
    digests = {}
    for name, content in files.items():
        key = content.strip()
        if not (key.isascii() and key.decode(errors="replace").isprintable() and b" " not in key and key):
            _log.error("key cannot be used: it must be printable ASCII without spaces", file=str(folder / name))
        else:
            digests[name] = _digest(key)
    _log.info("keys loaded", clients=sorted(digests))
    return Keys(digests)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

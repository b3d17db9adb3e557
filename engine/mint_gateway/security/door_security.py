"""How a gateway's doors are secured, built from its command-line options."""

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

from aiohttp.typedefs import Middleware

from mint_contracts.errors import InvalidRequest
from mint_gateway.http.auth_middleware import auth_middleware
from mint_gateway.metrics import Metrics
from mint_gateway.security.access import Access
from mint_gateway.security.certificate import Certificate, read_certificate
from mint_gateway.security.guard import Guard
from mint_gateway.security.mounted import Mounted


@dataclass(frozen=True)
class DoorSecurity:
    """A certificate (None: both doors speak plain text) and keys with scopes (None: everything is open)."""

    certificate: Mounted[Certificate] | None = None
    access: Access | None = None

    @classmethod
    def by(cls, tls: Path | None, keys: Path | None, scopes: Path | None = None) -> "DoorSecurity":
        """Read these folders. Raises MintError, which names the file or says that scopes need keys."""
        if scopes and not keys:
            raise InvalidRequest("--scopes", "needs keys for its scopes; give --keys too")
        return cls(Mounted(tls, read_certificate) if tls else None, Access(keys, scopes) if keys else None)

    def guards(self, metrics: Metrics) -> tuple[list[Guard], list[Middleware]]:
        """Return what lets only callers with keys through the doors, gRPC's and HTTP's; nothing if there are none."""
        if self.access is None:
            return [], []
        return [Guard(self.access, metrics)], [auth_middleware(self.access, metrics)]

    def flags(self) -> dict[str, bool]:
        """Return which protections are on, for the log."""
        scoped = self.access is not None and self.access.scoped
        return {"tls": self.certificate is not None, "keys": self.access is not None, "scopes": scoped}

    def following(self) -> Iterator[Coroutine[None, None, None]]:
        """Yield coroutines that follow changes to the certificate and the keys until cancelled."""
        for each in (self.certificate, self.access):
            if each is not None:
                yield each.run()

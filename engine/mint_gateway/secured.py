"""What a gateway's doors are secured by, as its program's options name it."""

from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

from mint_gateway.certificate import Certificate, read_certificate
from mint_gateway.keys import Keys, read_keys
from mint_gateway.mounted import Mounted


@dataclass(frozen=True)
class Secured:
    """A certificate, without which both doors speak plain text, and keys, without which they are open to all."""

    certificate: Mounted[Certificate] | None = None
    keys: Mounted[Keys] | None = None

    @classmethod
    def by(cls, tls: Path | None, keys: Path | None) -> "Secured":
        """What lies in these folders. Raises MintError, which names the file."""
        return cls(Mounted(tls, read_certificate) if tls else None, Mounted(keys, read_keys) if keys else None)

    def told(self) -> dict[str, bool]:
        """For the log."""
        return {"tls": self.certificate is not None, "keys": self.keys is not None}

    def following(self) -> Iterator[Coroutine[None, None, None]]:
        """Work that reads each of them again as it changes, until cancelled."""
        for mounted in (self.certificate, self.keys):
            if mounted is not None:
                yield mounted.run()

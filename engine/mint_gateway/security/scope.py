"""What one key opens: pure. Its holder learns of nothing else, not even that it exists."""

import hashlib
import json
from contextvars import ContextVar
from dataclasses import dataclass

from mint_contracts.names import split_asked


@dataclass(frozen=True)
class Scope:
    """Adapters by name prefix, base models and waves by namespace. None opens all, an empty one nothing."""

    adapters: tuple[str, ...] | None = None
    namespaces: frozenset[str] | None = None

    def adapter(self, asked: str) -> bool:
        """Return whether the scope opens the adapter, given as NAME or NAME@REVISION."""
        return self.adapters is None or split_asked(asked)[0].startswith(self.adapters)

    def base(self, name: str) -> bool:
        """Return whether the scope opens the base model "namespace/name", bare and with the adapters it opens."""
        return self._namespace(name)

    def wave(self, name: str) -> bool:
        """Return whether the scope opens the wave "namespace/name", over a base that it opens."""
        return self._namespace(name)

    def prefixes(self, wanted: str) -> tuple[str, ...]:
        """Return the prefixes of all opened names that begin with `wanted`, sorted; none is a prefix of another."""
        if self.adapters is None:
            return (wanted,)
        found: list[str] = []
        for prefix in sorted(self.adapters):
            if wanted.startswith(prefix):
                return (wanted,)
            if prefix.startswith(wanted) and not prefix.startswith(tuple(found)):
                found.append(prefix)
        return tuple(found)

    def salt(self, given: str) -> str:
        """Return the cache salt: keys share engines' prompt caches only with the same scope and `given` salt."""
        if self == EVERYTHING and not given:
            return ""
        opened = [sorted(each) if each is not None else None for each in (self.adapters, self.namespaces)]
        return hashlib.blake2b(json.dumps([*opened, given]).encode(), digest_size=16).hexdigest()

    def _namespace(self, name: str) -> bool:
        return self.namespaces is None or name.partition("/")[0] in self.namespaces


EVERYTHING = Scope()
OUT_OF_SCOPE = "outside your key's scope; contact the gateway's administrator"  # the end of a refusal's message

# The scope of the current request's key; everything if the gateway requires no key.
granted: ContextVar[Scope] = ContextVar("granted", default=EVERYTHING)

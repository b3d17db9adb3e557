"""What one key opens: pure. Whoever bears it learns of nothing else, not even that it is there."""

import hashlib
import json
from contextvars import ContextVar
from dataclasses import dataclass

from mint_contracts.names import split_asked


@dataclass(frozen=True)
class Scope:
    """Adapters by how their names begin, base models and waves by their namespaces. None: all; empty: none."""

    adapters: tuple[str, ...] | None = None
    namespaces: frozenset[str] | None = None

    def adapter(self, asked: str) -> bool:
        """Whether it opens the adapter, asked for as NAME or NAME@REVISION."""
        return self.adapters is None or split_asked(asked)[0].startswith(self.adapters)

    def base(self, name: str) -> bool:
        """Whether it opens the base model "namespace/name" by itself: asking for it bare, and all that it has."""
        return self._namespace(name)

    def wave(self, name: str) -> bool:
        """Whether it opens the wave "namespace/name", over a base that it opens."""
        return self._namespace(name)

    def prefixes(self, wanted: str) -> tuple[str, ...]:
        """The beginnings of all names that it opens and that begin with `wanted`; sorted, none begins another."""
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
        """Of whoever may find what requests leave in engines' caches: all of this scope who have `given` the same."""
        if self == EVERYTHING and not given:
            return ""
        opened = [sorted(each) if each is not None else None for each in (self.adapters, self.namespaces)]
        return hashlib.blake2b(json.dumps([*opened, given]).encode(), digest_size=16).hexdigest()

    def _namespace(self, name: str) -> bool:
        return self.namespaces is None or name.partition("/")[0] in self.namespaces


EVERYTHING = Scope()
OUT_OF_SCOPE = "outside your key's scope; contact the gateway's administrator"  # how a refusal ends

# What the key opens that the request bears which is answered here; everything where none is asked for.
granted: ContextVar[Scope] = ContextVar("granted", default=EVERYTHING)

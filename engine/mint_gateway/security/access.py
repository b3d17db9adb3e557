"""Access control: which API keys are accepted, and the scope of each."""

import asyncio
from collections.abc import Set
from pathlib import Path

import structlog

from mint_gateway.security.keys import Keys, caller, read_keys, sharer
from mint_gateway.security.mounted import Mounted
from mint_gateway.security.scope import EVERYTHING, granted
from mint_gateway.security.scopes import Scopes, no_scopes, read_scopes

_log = structlog.get_logger()


class Access:
    """The keys in one folder and, optionally, the scopes in another; changes to both are followed."""

    def __init__(self, keys: Path, scopes: Path | None = None) -> None:
        """Read both folders for the first time. Raises MintError."""
        self._strays: Set[str] = frozenset()  # scopes without a key, which were already logged
        self._keys: Mounted[Keys] = Mounted(keys, read_keys, on_change=self._tell_strays)
        self._scopes: Mounted[Scopes] | None = None
        if scopes is not None:
            self._scopes = Mounted(scopes, read_scopes, broken=no_scopes, on_change=self._tell_strays)
        self._tell_strays()

    @property
    def scoped(self) -> bool:
        """Whether keys may have scopes."""
        return self._scopes is not None

    def admit(self, authorization: str | None) -> None:
        """Check a request's key and set `caller`, `sharer` and `granted` for the rest of its context.

        Raises Unauthenticated.
        """
        keys = self._keys.now
        name = keys.bearer(authorization)
        scope = EVERYTHING if self._scopes is None else self._scopes.now.of(name)
        caller.set(name)
        sharer.set(name if len(keys.digests) > 1 else "")
        granted.set(scope)

    async def run(self) -> None:
        """Follow changes to keys and scopes until cancelled."""
        async with asyncio.TaskGroup() as looking:
            looking.create_task(self._keys.run())
            if self._scopes is not None:
                looking.create_task(self._scopes.run())

    def _tell_strays(self) -> None:
        """Log each scope that names no known key, once: the key may come later, or the name may be mistyped."""
        named = self._scopes.now.by_key.keys() if self._scopes else set()
        strays = named - self._keys.now.digests.keys()
        for name in sorted(strays - self._strays):
            _log.warning("scope names an unknown key", client=name)
        self._strays = strays

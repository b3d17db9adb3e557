"""Who may ask, and for what: keys, and the scopes of those that have one."""

import asyncio
from pathlib import Path

import structlog

from mint_gateway.keys import Keys, caller, read_keys
from mint_gateway.mounted import Mounted
from mint_gateway.scope import EVERYTHING, granted
from mint_gateway.scopes import Scopes, no_scopes, read_scopes

_log = structlog.get_logger()


class Access:
    """The keys in a folder, and the scopes in another, if any; both as they change."""

    def __init__(self, keys: Path, scopes: Path | None = None) -> None:
        """Read them the first time. Raises MintError."""
        self._strays: set[str] = set()  # that were told of
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
        """Note whose key the request bears and what it opens, for all that answers it: from here to its end.

        Raises Unauthenticated.
        """
        name = self._keys.now.bearer(authorization)
        scope = EVERYTHING if self._scopes is None else self._scopes.now.of(name)
        caller.set(name)
        granted.set(scope)

    async def run(self) -> None:
        """Look for changes until cancelled."""
        async with asyncio.TaskGroup() as looking:
            looking.create_task(self._keys.run())
            if self._scopes is not None:
                looking.create_task(self._scopes.run())

    def _tell_strays(self) -> None:
        """Log each scope that is no key's, once: its key may come later, or its name be mistyped."""
        named = self._scopes.now.by_key.keys() if self._scopes else set()
        for name in sorted(named - self._keys.now.digests.keys() - self._strays):
            self._strays.add(name)
            _log.warning("scope names an unknown key", client=name)

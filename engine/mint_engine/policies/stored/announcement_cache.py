"""The event loop's copy of the store's announcements, made by this engine or others, now or before it started."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from mint_contracts.errors import MintError
from mint_contracts.source import Source
from mint_engine.policies.stored.announcements import Announcements, Announcer
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import store_of
from mint_engine.sources.blocking import run_blocking

LOOK_S = 10.0  # as often as the map is read
FIRST_S = 5.0  # to wait for the first look before going on without it

_Edits = dict[str, Source | None]  # policy -> source that its name now refers to; None: nothing

_log = structlog.get_logger(__name__)


class AnnouncementCache:
    """One engine's cache. `on_change` is called whenever the revision that some name refers to changes."""

    def __init__(self, store: Source, base: str, engine: str, look_s: float = LOOK_S) -> None:
        self._store, self._base, self._engine, self._look_s = store, base, engine, look_s
        self._looks: list[_Edits] = []  # per look under way: what this engine has written since it began
        self._unlisted = _Edits()  # what this engine has written before the first look succeeded
        self._known_at = -math.inf  # when the listing behind `known` began
        self._looked = asyncio.Event()
        self._shared: asyncio.Task[None] | None = None  # one look shared by all callers of `clear`
        self.known: Mapping[str, Source] = {}  # policy -> source of its newest revision
        self.on_change: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Look periodically until cancelled. While the store is unavailable, `known` stays as it is."""
        away = False
        while True:
            try:
                await self.look()
                away = False
            except MintError as error:
                if not away:
                    _log.warning("announcements_unread", engine=self._engine, error=str(error))
                away = True
            await asyncio.sleep(self._look_s)

    async def first(self, timeout_s: float = FIRST_S) -> bool:
        """Wait until the first look has succeeded, for at most `timeout_s`; return whether it has."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._looked.wait()
        return self._looked.is_set()

    def presume(self, known: Mapping[str, Source]) -> None:
        """Until the first look succeeds, go by what was `known` earlier and what this engine has written since."""
        if not self._looked.is_set():
            self._know(_edited(known, self._unlisted))

    async def announce(self, policy: str, life: int, name: Name, source: Source) -> None:
        """Make a policy's name refer to `name`, published at `source`. Raises as `Announcements.announce`."""
        announcer = Announcer(self._engine, life)
        await run_blocking(lambda: self._open().announce(policy, name, announcer))
        self._note({policy: source})

    async def withdraw(self, policy: str, life: int = 0, *, whoever: bool = False) -> bool:
        """Withdraw what this life of the policy, or an earlier one on this engine, has announced; return if any.

        `life` 0 stands for the latest one here. With `whoever`, withdraw all announcements of the name, whoever made
        them. Raises a store's errors.
        """
        announcer = None if whoever else Announcer(self._engine, life)
        withdrawal = await run_blocking(lambda: self._open().withdraw(policy, announcer))
        self._note({policy: withdrawal.left})
        return withdrawal.found

    async def clear(self, policy: str, since: float) -> None:
        """Withdraw all lives of a name for which this engine has announced nothing since `since` (monotonic seconds).

        Any announcement of it is older than that, so the next listing shows it; one listing serves all of a wave.
        """
        while self._known_at < since:
            if self._shared is None:
                self._shared = asyncio.create_task(self._look_once())
            await asyncio.shield(self._shared)
        if policy in self.known:
            await self.withdraw(policy)

    async def look(self) -> None:
        """Update `known` from the store. Raises a store's errors.

        What this engine writes meanwhile takes precedence over the listing, which may predate it.
        """
        since, began = _Edits(), time.monotonic()
        self._looks.append(since)
        try:
            found = await run_blocking(lambda: self._open().standing())
        finally:
            self._looks = [each for each in self._looks if each is not since]
        self._looked.set()
        if began > self._known_at:  # otherwise a look that began later has already finished
            self._known_at = began
            self._know(_edited(found, since))

    async def _look_once(self) -> None:
        try:
            await self.look()
        finally:
            self._shared = None

    def _open(self) -> Announcements:
        return Announcements(store_of(self._store), self._base)

    def _note(self, edit: _Edits) -> None:
        for each in self._looks:
            each.update(edit)
        if not self._looked.is_set():
            self._unlisted.update(edit)
        self._know(_edited(self.known, edit))

    def _know(self, found: Mapping[str, Source]) -> None:
        if found != self.known:
            self.known = found
            self.on_change()


def _edited(known: Mapping[str, Source], edits: _Edits) -> dict[str, Source]:
    return {policy: source for policy, source in {**known, **edits}.items() if source is not None}

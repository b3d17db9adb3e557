"""What is announced in the store, kept known on the event loop: by this engine, by others, and before it started."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from mint_contracts.errors import MintError
from mint_contracts.source import Source
from mint_engine.policies.announcements import Announcements, Announcer
from mint_engine.policies.series import Name
from mint_engine.policies.store import store_of
from mint_engine.sources.asking import asked

LOOK_S = 10.0  # as often as the map is read anew
FIRST_S = 5.0  # for the first look, before the engine does without

_Edits = dict[str, Source | None]  # by policy, where what its name means from now on lies; None: it means nothing

_log = structlog.get_logger(__name__)


class AnnouncementCache:
    """One engine's. `on_change` is called whenever another revision, or none, is what some name means."""

    def __init__(self, store: Source, base: str, engine: str, look_s: float = LOOK_S) -> None:
        self._store, self._base, self._engine, self._look_s = store, base, engine, look_s
        self._looks: list[_Edits] = []  # of each that is under way, what was written here since it began
        self._known_at = -math.inf  # when the listing began that is known, with what was written here since
        self._looked = asyncio.Event()
        self._shared: asyncio.Task[None] | None = None  # a look that many wait for
        self.known: Mapping[str, Source] = {}  # by policy, where its newest revision lies
        self.on_change: Callable[[], None] = lambda: None

    async def run(self) -> None:
        """Look, again and again, until cancelled. A store that is away leaves what is known as it is."""
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

    async def first(self, timeout_s: float = FIRST_S) -> None:
        """Wait until the store was looked into once, within a bound."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._looked.wait()

    async def announce(self, policy: str, life: int, name: Name, source: Source) -> None:
        """Have a policy's name mean what was published as `name`, to `source`. Raises as `Announcements.announce`."""
        announcer = Announcer(self._engine, life)
        await asked(lambda: self._open().announce(policy, name, announcer))
        self._note({policy: source})

    async def withdraw(self, policy: str, life: int = 0, *, whoever: bool = False) -> None:
        """Have it mean nothing that this life of the policy, or an earlier one here, has announced, or `whoever`.

        `life` 0 stands for the latest here. Raises the errors of a store.
        """
        announcer = None if whoever else Announcer(self._engine, life)
        left = await asked(lambda: self._open().withdraw(policy, announcer))
        self._note({policy: left})

    async def clear(self, policy: str, since: float) -> None:
        """As `withdraw` of whatever life, of a name that nothing here has announced `since` then (monotonic seconds).

        What stands under it was there by then, for the next listing to tell: one does for all names of a wave.
        """
        while self._known_at < since:
            if self._shared is None:
                self._shared = asyncio.create_task(self._look_once())
            await asyncio.shield(self._shared)
        if policy in self.known:
            await self.withdraw(policy)

    async def look(self) -> None:
        """Know what the store says now. Raises its errors.

        What was written here meanwhile goes before a listing, which may have been made before it.
        """
        since, began = _Edits(), time.monotonic()
        self._looks.append(since)
        try:
            found = await asked(lambda: self._open().standing())
        finally:
            self._looks = [each for each in self._looks if each is not since]
        self._looked.set()
        if began > self._known_at:  # or one that began later is known by now
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
        self._know(_edited(self.known, edit))

    def _know(self, found: Mapping[str, Source]) -> None:
        if found != self.known:
            self.known = found
            self.on_change()


def _edited(known: Mapping[str, Source], edits: _Edits) -> dict[str, Source]:
    return {policy: source for policy, source in {**known, **edits}.items() if source is not None}

"""Announcements in the store of what calls have published: a policy's name refers to its newest revision.

    <store>/announced/<base>/<policy>@<lease>-<step>      the policy's slashes as "+", which no name contains

They outlive the engine that publishes. The file name holds all that serving needs, so one listing covers a base. The
newest by (lease, step) counts: a late announcement under an older lease never replaces it. The file's content is its
announcer, who alone may withdraw it.
"""

from typing import NamedTuple

import msgspec
import structlog

from mint_contracts.errors import CapacityExceeded, MintError, SourceNotFound, StaleLease
from mint_contracts.source import Source, child
from mint_contracts.training_records import published_in
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import Store

MAX_ANNOUNCEMENT = 1 << 16

_log = structlog.get_logger(__name__)


class Announcer(msgspec.Struct, frozen=True):
    """Who published a policy: the engine, and the lease under which the policy was created there."""

    engine: str
    life: int

    def may_withdraw(self, other: "Announcer") -> bool:
        """Whether `other` is of the same life, or of an earlier one on this engine; life 0 stands for the latest."""
        earlier = self.engine == other.engine and (not self.life or other.life < self.life)
        return earlier or self.life == other.life


class Withdrawal(NamedTuple):
    """What withdrawing a name's announcements has done."""

    found: bool  # whether there was any to withdraw
    left: Source | None  # what the name refers to afterwards


# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_ANNOUNCER = msgspec.json.Decoder(Announcer)


class Announcements:
    """The announcements of one base ("namespace/name") in its training store.

    All methods block the calling thread and raise a store's errors.
    """

    def __init__(self, store: Store, base: str) -> None:
        self._store, self._folder = store, f"announced/{base}"

    def announce(self, policy: str, name: Name, announcer: Announcer) -> None:
        """Make the policy's name refer to what it has published as `name`. Durable when this returns.

        A failure to remove older announcements is only logged: the next one tries again. Raises StaleLease if a newer
        lease has announced.
        """
        others = self._all().get(policy, [])
        if others and others[-1].lease > name.lease:
            reason = f"is now published under lease {others[-1].lease}, not {name.lease}"
            raise StaleLease(f"policy {policy!r}", reason)
        self._store.write(self._path(policy, name), msgspec.json.encode(announcer))
        try:
            for each in others:
                if each < name:
                    self._store.delete(self._path(policy, each))
        except MintError as error:
            _log.warning("announcements_unswept", policy=policy, revision=str(name), error=str(error))

    def withdraw(self, policy: str, announcer: Announcer | None) -> Withdrawal:
        """Remove the announcements that this announcer may withdraw, or all of them if it is None."""
        withdrawal = Withdrawal(found=False, left=None)
        for each in self._all().get(policy, []):
            path = self._path(policy, each)
            try:
                found = _ANNOUNCER.decode(self._store.read(path, MAX_ANNOUNCEMENT))
            except SourceNotFound:
                continue
            except (msgspec.MsgspecError, CapacityExceeded) as error:
                _log.error("announcement_broken", policy=policy, path=path, error=str(error))
            else:
                if announcer is None or announcer.may_withdraw(found):
                    self._store.delete(path)
                    withdrawal = withdrawal._replace(found=True)
                    continue
            withdrawal = withdrawal._replace(left=self._lies(policy, each))
        return withdrawal

    def standing(self) -> dict[str, Source]:
        """Return the source of each policy's newest announced revision."""
        return {policy: self._lies(policy, names[-1]) for policy, names in self._all().items()}

    def _lies(self, policy: str, name: Name) -> Source:
        return child(published_in(self._store.source, policy), str(name))

    def _all(self) -> dict[str, list[Name]]:
        """Return the announced names by policy, oldest first."""
        found: dict[str, list[Name]] = {}
        for file in self._store.names(self._folder):
            policy, _, name = file.partition("@")
            if (read := Name.read(name)) is not None:
                found.setdefault(policy.replace("+", "/"), []).append(read)
        return {policy: sorted(names) for policy, names in found.items()}

    def _path(self, policy: str, name: Name) -> str:
        return f"{self._folder}/{policy.replace('/', '+')}@{name}"

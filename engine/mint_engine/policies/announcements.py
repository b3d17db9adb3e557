"""Names that calls have published, announced in the store: each means its newest revision, whichever engine runs.

    <store>/announced/<base>/<policy>@<lease>-<step>      the policy's slashes as "+", which no name has

Its own name says all that whoever serves it must know, so that one listing tells of all of a base's. The newest by
(lease, step) counts: what is announced late under an older lease never takes its place. Inside is who has announced
it, whom alone it is withdrawn for.
"""

import msgspec
import structlog

from mint_contracts.errors import CapacityExceeded, SourceNotFound, StaleLease
from mint_contracts.source import Source, child
from mint_contracts.training_records import published_in
from mint_engine.policies.series import Name
from mint_engine.policies.store import Store

MAX_ANNOUNCEMENT = 1 << 16

_log = structlog.get_logger(__name__)


class Announcer(msgspec.Struct, frozen=True):
    """Whose policy it is that was published: an engine, and the lease that the policy was created under there."""

    engine: str
    life: int

    def may_withdraw(self, other: "Announcer") -> bool:
        """Whether it is of the very same life, or of an earlier one on this engine; life 0 stands for the latest."""
        earlier = self.engine == other.engine and (not self.life or other.life < self.life)
        return earlier or self.life == other.life


# made on import: several threads that are the first to decode a type at once crash msgspec 0.22
_ANNOUNCER = msgspec.json.Decoder(Announcer)


class Announcements:
    """Those of one base ("namespace/name") in its training store. Blocks its thread, and raises a store's errors."""

    def __init__(self, store: Store, base: str) -> None:
        self._store, self._folder = store, f"announced/{base}"

    def announce(self, policy: str, name: Name, announcer: Announcer) -> None:
        """From now on the policy's name means what it has published as `name`. Durable when this returns.

        Raises StaleLease where a newer lease has announced.
        """
        others = self._all().get(policy, [])
        if others and others[-1].lease > name.lease:
            reason = f"is now published under lease {others[-1].lease}, not {name.lease}"
            raise StaleLease(f"policy {policy!r}", reason)
        self._store.write(self._path(policy, name), msgspec.json.encode(announcer))
        for each in others:
            if each < name:
                self._store.delete(self._path(policy, each))

    def withdraw(self, policy: str, announcer: Announcer | None) -> Source | None:
        """Let the name mean nothing any more, as far as this announcer may say so; None: whoever announced.

        What it means then.
        """
        left = None
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
                    continue
            left = self._lies(policy, each)
        return left

    def standing(self) -> dict[str, Source]:
        """Where the newest revision of each name lies."""
        return {policy: self._lies(policy, names[-1]) for policy, names in self._all().items()}

    def _lies(self, policy: str, name: Name) -> Source:
        return child(published_in(self._store.source, policy), str(name))

    def _all(self) -> dict[str, list[Name]]:
        """By policy, the oldest first."""
        found: dict[str, list[Name]] = {}
        for file in self._store.names(self._folder):
            policy, _, name = file.partition("@")
            if (read := Name.read(name)) is not None:
                found.setdefault(policy.replace("+", "/"), []).append(read)
        return {policy: sorted(names) for policy, names in found.items()}

    def _path(self, policy: str, name: Name) -> str:
        return f"{self._folder}/{policy.replace('/', '+')}@{name}"

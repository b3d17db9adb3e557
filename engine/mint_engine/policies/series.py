"""What a policy's trainers write one after another: a folder for each, named by lease and step.

    <folder>/<lease>-<step>/<what is told>, then <folder>/<lease>-<step>/<what tells of it>

What nothing tells of does not exist. A trainer touches only its own folder and those before it: what one does that
has lost its lease, and whose thread goes on, never harms what a newer one writes.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from mint_contracts.errors import SourceNotFound, StaleLease
from mint_engine.policies.store import Store

_NAME = re.compile(r"([0-9]{16})-([0-9]{8})")


class Name(msgspec.Struct, frozen=True, order=True):
    """What orders them."""

    lease: int
    step: int

    def __str__(self) -> str:
        return f"{self.lease:016d}-{self.step:08d}"

    @classmethod
    def read(cls, text: str) -> "Name | None":
        """What `str` gave; None for anything else."""
        found = _NAME.fullmatch(text)
        return cls(int(found[1]), int(found[2])) if found else None


class Series:
    """One policy's. `telling` is the file that tells of the others, written last. Blocks its thread."""

    def __init__(self, store: Store, policy: str, folder: str, telling: str, kept: int) -> None:
        self._store, self._policy, self._telling, self._kept = store, policy, telling, kept
        self.folder = folder

    def names(self) -> list[Name]:
        """The oldest first, also what is only half there."""
        found = [Name.read(name) for name in self._store.names(self.folder)]
        return sorted(each for each in found if each is not None)

    def latest_lease(self) -> int:
        """Under which anything was written, 0: nothing was."""
        return max((each.lease for each in self.names()), default=0)

    @contextmanager
    def written(self, name: Name) -> Iterator[None]:
        """Around what is written as `name`. Raises StaleLease where a newer lease has written, before or meanwhile.

        That one sweeps what is half there of an older one, whose writer finds its own folder gone.
        """
        self._refuse_stale(name)
        try:
            yield
        except SourceNotFound:
            self._refuse_stale(name)
            raise

    def _refuse_stale(self, name: Name) -> None:
        newer = [each for each in self.names() if each.lease > name.lease]
        if newer:
            raise StaleLease(
                f"policy {self._policy!r}", f"is trained under lease {newer[-1].lease} now, not {name.lease}"
            )

    def sweep(self, name: Name) -> None:
        """Remove all but the newest ones up to `name`; what tells of one first, so that none is ever half there."""
        older = [each for each in self.names() if each <= name]
        whole = [each for each in older if self._telling in self._store.names(f"{self.folder}/{each}")]
        for each in older:
            if each not in whole[-self._kept :]:
                self._store.delete(f"{self.folder}/{each}/{self._telling}")
                self._store.delete(f"{self.folder}/{each}")

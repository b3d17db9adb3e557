"""What a policy's trainers write one after another: a folder for each, named by lease and step.

    <folder>/<lease>-<step>/<content>, then <folder>/<lease>-<step>/<manifest>

What no manifest names does not exist. A lease that has written nothing may say that it has the policy (`take`), by

    <folder>/<lease>-00000000/taken.<number>

A trainer touches only its own folder and those before it: what one does that has lost its lease, and whose thread
goes on, never harms what a newer one writes.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from mint_contracts.errors import SourceNotFound, StaleLease
from mint_engine.policies.store import Store

TAKEN = "taken."

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
    """One policy's. `manifest` is the file that names the others, written last. Blocks its thread."""

    def __init__(self, store: Store, policy: str, folder: str, manifest: str, kept: int) -> None:
        self._store, self._policy, self._manifest, self._kept = store, policy, manifest, kept
        self.folder = folder

    def names(self) -> list[Name]:
        """The oldest first, also what is only half there."""
        found = [Name.read(name) for name in self._store.names(self.folder)]
        return sorted(each for each in found if each is not None)

    def latest_lease(self) -> int:
        """Under which anything was written, 0: nothing was."""
        return max((each.lease for each in self.names()), default=0)

    def take(self, lease: int) -> None:
        """Say that this lease has the policy: no older one writes anything from then on.

        Raises StaleLease where a newer lease has written, or another engine says the same of just this one.
        """
        folder, mine = f"{self.folder}/{Name(lease, 0)}", TAKEN + secrets.token_hex(8)
        self._store.write(f"{folder}/{mine}", b"{}")
        alone = self._store.names(folder) == [mine]
        try:
            self._refuse_stale(Name(lease, 0))
            if not alone:
                raise StaleLease(
                    f"policy {self._policy!r}", f"is also being taken under lease {lease} by another engine"
                )
        except StaleLease:
            self._store.delete(folder if alone else f"{folder}/{mine}")
            if not self._store.names(folder):  # both have given way: a folder is there with nothing in it, too
                self._store.delete(folder)
            raise

    def give_back(self, lease: int) -> None:
        """Take back what `take` has said of a lease that has written nothing since."""
        self._store.delete(f"{self.folder}/{Name(lease, 0)}")

    @contextmanager
    def written(self, name: Name) -> Iterator[None]:
        """Around what is written as `name`. Raises StaleLease where a newer lease has written, before or meanwhile.

        Who takes a lease looks for what older ones have written once it has said so, and these look once they have
        written: one of both sees the other, so that nothing is acknowledged that the newer one does not know of. And
        that one sweeps what is half there of an older one, whose writer finds its own folder gone.
        """
        self._refuse_stale(name)
        try:
            yield
        except SourceNotFound:
            self._refuse_stale(name)
            raise
        self._refuse_stale(name)

    def _refuse_stale(self, name: Name) -> None:
        newer = [each for each in self.names() if each.lease > name.lease]
        if newer:
            raise StaleLease(
                f"policy {self._policy!r}", f"is now trained under lease {newer[-1].lease}, not {name.lease}"
            )

    def sweep(self, name: Name) -> None:
        """Remove all but the newest ones up to `name`; what tells of one first, so that none is ever half there."""
        older = [each for each in self.names() if each <= name]
        whole = [each for each in older if self._manifest in self._store.names(f"{self.folder}/{each}")]
        for each in older:
            if each not in whole[-self._kept :]:
                self._store.delete(f"{self.folder}/{each}/{self._manifest}")
                self._store.delete(f"{self.folder}/{each}")

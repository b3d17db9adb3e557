"""A series of what a policy's trainers write: one folder for each item, named by lease and step.

    <folder>/<lease>-<step>/<content>, then <folder>/<lease>-<step>/<manifest>

An item without its manifest does not exist. A lease that has written nothing yet may claim the policy (`claim`) by

    <folder>/<lease>-00000000/taken.<number>

A trainer touches only its own folder and older ones: a thread that goes on after its trainer has lost the lease
never harms what a newer one writes.
"""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from mint_contracts.errors import SourceNotFound, StaleLease
from mint_engine.policies.stored.store import Store

CLAIM = "taken."

_NAME = re.compile(r"([0-9]{16})-([0-9]{8})")


class Name(msgspec.Struct, frozen=True, order=True):
    """An item's name, which orders the series."""

    lease: int
    step: int

    def __str__(self) -> str:
        return f"{self.lease:016d}-{self.step:08d}"

    @classmethod
    def read(cls, text: str) -> "Name | None":
        """Parse what `str` gave; None for anything else."""
        found = _NAME.fullmatch(text)
        return cls(int(found[1]), int(found[2])) if found else None


class Series:
    """One policy's series. `manifest` is the file of each item written last. All methods block the calling thread."""

    def __init__(self, store: Store, policy: str, folder: str, manifest: str, kept: int) -> None:
        self._store, self._policy, self._manifest, self._kept = store, policy, manifest, kept
        self.folder = folder

    def names(self) -> list[Name]:
        """Return the names of all items, also incomplete ones, oldest first."""
        found = [Name.read(name) for name in self._store.names(self.folder)]
        return sorted(each for each in found if each is not None)

    def leases(self) -> list[int]:
        """Return the leases that have written anything or claimed the policy, oldest first, one for each folder."""
        return [each.lease for each in self.names()]

    def latest_lease(self) -> int:
        """Return the latest of these leases; 0 if there is none."""
        return max((each.lease for each in self.names()), default=0)

    def claim(self, lease: int) -> None:
        """Claim the policy for this lease: no older lease's write succeeds from then on.

        Raises StaleLease if a newer lease has written, or if another engine claims it under the same lease.
        """
        folder, mine = f"{self.folder}/{Name(lease, 0)}", CLAIM + secrets.token_hex(8)
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
            if not self._store.names(folder):  # both gave way: an empty folder would still count
                self._store.delete(folder)
            raise

    def unclaim(self, lease: int) -> None:
        """Revert `claim` for a lease that has written nothing since."""
        self._store.delete(f"{self.folder}/{Name(lease, 0)}")

    @contextmanager
    def written(self, name: Name) -> Iterator[None]:
        """A context for writing `name`. Raises StaleLease if a newer lease has written, before or meanwhile.

        A newer lease claims the policy first and then reads what older ones have written; an older one writes first
        and then looks for newer claims. One of the two sees the other, so nothing is acknowledged that the newer one
        does not know of. The newer one also sweeps incomplete older items; their writers find their folders gone.
        """
        self._refuse_stale(name)
        try:
            yield
        except SourceNotFound:
            self._refuse_stale(name)
            raise
        self._refuse_stale(name)

    def _refuse_stale(self, name: Name) -> None:
        if (latest := self.latest_lease()) > name.lease:
            raise superseded(self._policy, latest, name.lease)

    def sweep(self, name: Name) -> None:
        """Remove all but the newest items up to `name`, each item's manifest first, so that none is half there."""
        older = [each for each in self.names() if each <= name]
        whole = [each for each in older if self._manifest in self._store.names(f"{self.folder}/{each}")]
        for each in older:
            if each not in whole[-self._kept :]:
                self._store.delete(f"{self.folder}/{each}/{self._manifest}")
                self._store.delete(f"{self.folder}/{each}")


def superseded(policy: str, latest: int, lease: int) -> StaleLease:
    """Return the error for what is done under a lease that is no longer the latest."""
    return StaleLease(f"policy {policy!r}", f"is now trained under lease {latest}, not {lease}")

"""Policies of calls that rest, listed in the store: saved by an engine that let go of them, and on none since.

    <store>/resting/<base>/<policy>@<life>-<sequence>-<step>      in hex; the policy's slashes as "+"

Its own name says all that is told of one, so that one listing does for all of a base's.
"""

import re

import msgspec

from mint_engine.policies.store import Store

_NAME = re.compile(r"([^@]+)@([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]+)")


class Rests(msgspec.Struct, frozen=True, order=True):
    """One policy, of which life, after so many calls and optimizer steps."""

    policy: str
    life: int
    sequence: int
    step: int

    def __str__(self) -> str:
        return f"{self.policy.replace('/', '+')}@{self.life:x}-{self.sequence:x}-{self.step:x}"

    @classmethod
    def read(cls, text: str) -> "Rests | None":
        """What `str` gave; None for anything else."""
        found = _NAME.fullmatch(text)
        if found is None:
            return None
        return cls(found[1].replace("+", "/"), *(int(number, 16) for number in found.groups()[1:]))


class Resting:
    """Those of one base ("namespace/name") in its training store. Blocks its thread, and raises a store's errors."""

    def __init__(self, store: Store, base: str) -> None:
        self._store, self._folder = store, f"resting/{base}"

    def note(self, rests: Rests) -> None:
        """From now on it rests."""
        self._store.write(f"{self._folder}/{rests}", b"{}")

    def forget(self, rests: Rests) -> None:
        """It does not rest any more."""
        self._store.delete(f"{self._folder}/{rests}")

    def after(self, policy: str) -> list[Rests]:
        """All whose names come after this one, in their order; of several lives of a name the latest."""
        found = (Rests.read(name) for name in self._store.names(self._folder))
        latest = {each.policy: each for each in sorted(each for each in found if each is not None)}
        return [each for name, each in latest.items() if name > policy]

"""The store's list of resting Trainer API policies: saved by an engine that let go of them, and on none since.

    <store>/resting/<base>/<policy>@<life>-<sequence>-<step>      numbers in hex; the policy's slashes as "+"

The file name holds all that is reported of a policy, so one listing covers a base.
"""

import re

import msgspec

from mint_engine.policies.stored.store import Store

_NAME = re.compile(r"([^@]+)@([0-9a-f]+)-([0-9a-f]+)-([0-9a-f]+)")


class RestingPolicy(msgspec.Struct, frozen=True, order=True):
    """One resting policy: its name, life, last call's sequence number and optimizer steps."""

    policy: str
    life: int
    sequence: int
    step: int

    def __str__(self) -> str:
        return f"{self.policy.replace('/', '+')}@{self.life:x}-{self.sequence:x}-{self.step:x}"

    @classmethod
    def read(cls, text: str) -> "RestingPolicy | None":
        """Parse what `str` gave; None for anything else."""
        found = _NAME.fullmatch(text)
        if found is None:
            return None
        return cls(found[1].replace("+", "/"), *(int(number, 16) for number in found.groups()[1:]))


class RestingPolicies:
    """The resting policies of one base ("namespace/name") in its training store.

    All methods block the calling thread and raise a store's errors.
    """

    def __init__(self, store: Store, base: str) -> None:
        self._store, self._folder = store, f"resting/{base}"

    def note(self, policy: RestingPolicy) -> None:
        """Add a policy to the list."""
        self._store.write(f"{self._folder}/{policy}", b"{}")

    def forget(self, policy: RestingPolicy) -> None:
        """Remove a policy from the list."""
        self._store.delete(f"{self._folder}/{policy}")

    def after(self, policy: str) -> list[RestingPolicy]:
        """Return the policies whose names sort after `policy`, in order; of several lives of a name, the latest."""
        found = (RestingPolicy.read(name) for name in self._store.names(self._folder))
        latest = {each.policy: each for each in sorted(each for each in found if each is not None)}
        return [each for name, each in latest.items() if name > policy]

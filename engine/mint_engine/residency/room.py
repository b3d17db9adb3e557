"""Host memory that policies take, out of the host tier's budget: whose cold adapters give way to it.

A policy's own numbers count for as long as it is here. Copies of them, while it is saved, loaded or published, count
while they are made, and there is always room for those of the largest policy: so each of many policies can be saved,
one after another where memory allows no more at once. Who finds no room waits, or is told when to come back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_engine.residency.host import HostTier, Key

RETRY_S = 5.0
WAIT_S = 10.0  # for others' copies, before whoever waits is told to come back


@dataclass(frozen=True)
class Needs:
    """Bytes of host memory that one policy takes at most."""

    own: int  # for as long as it is here
    copies: int  # beside that while it is saved, or another state of it loaded
    published: int  # while it is published


NOTHING = Needs(0, 0, 0)


class Room:
    """One engine's. Belongs to the event loop. `on_evicted` hears which adapters have left the host tier."""

    def __init__(self, host: HostTier, on_evicted: Callable[[Iterable[Key]], None], wait_s: float = WAIT_S) -> None:
        self._host, self._on_evicted, self._wait_s = host, on_evicted, wait_s
        self._needs: dict[str, Needs] = {}
        self._copied = 0
        self._line = asyncio.Lock()  # of those who wait for room for copies
        self._left = asyncio.Event()

    @property
    def budget(self) -> int:
        """Bytes that adapters and policies may have together."""
        return self._host.ledger.budget

    @property
    def policies(self) -> int:
        """Bytes of all policies' own numbers."""
        return sum(each.own for each in self._needs.values())

    @property
    def lasting(self) -> int:
        """Bytes that are taken for good: policies' own numbers, and what the largest needs to be copied."""
        return self.policies + self._reserve

    def take(self, holder: str, needs: Needs) -> None:
        """Have room for a policy, in place of what its holder had, until `leave`.

        Raises CapacityExceeded where the budget can never hold it, and Overloaded where others have taken that.
        """
        before = self._needs.get(holder, NOTHING)
        self._needs[holder] = needs
        if self._settle():
            return
        self._needs[holder] = before
        if before is NOTHING:
            del self._needs[holder]
        most, aside, budget = needs.own + needs.copies, self._host.ledger.aside, self._host.ledger.budget
        if most > budget:
            raise CapacityExceeded(
                holder, f"needs {in_units(most)} of {in_units(budget)} of host memory; raise hostMemory"
            )
        held = f"{len(self._needs)} other policies and their copies have {in_units(aside)} of {in_units(budget)}"
        raise Overloaded(
            holder,
            f"needs {in_units(most)} of host memory; {held}, and wanted adapters the rest; "
            "retry later, train fewer at once, or raise hostMemory",
            retry_after_s=RETRY_S,
        )

    def leave(self, holder: str) -> None:
        """Give back what a holder has, if it has any."""
        if self._needs.pop(holder, None) is not None:
            self._shrink()

    def of(self, holder: str) -> Needs:
        """What a holder has taken."""
        return self._needs.get(holder, NOTHING)

    @asynccontextmanager
    async def copying(self, holder: str, nbytes: int) -> AsyncIterator[None]:
        """Room for copies until the end of the context, see `begin_copy`."""
        end = await self.begin_copy(holder, nbytes)
        try:
            yield
        finally:
            end()

    async def begin_copy(self, holder: str, nbytes: int) -> Callable[[], None]:
        """Have room for so many bytes of copies, at most a policy's `copies`; returns what gives it back.

        Who comes first is first. Raises Overloaded where others' copies leave none in time.
        """
        try:
            async with asyncio.timeout(self._wait_s), self._line:
                while not self._enter(nbytes):
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            raise Overloaded(
                holder,
                f"needs {in_units(nbytes)} of host memory to be copied, and other policies' copies take "
                f"{in_units(self._copied)}; retry later, or raise hostMemory",
                retry_after_s=RETRY_S,
            ) from None
        return partial(self._end_copy, nbytes)

    def imbalance(self, policies: int) -> str:
        """What does not add up, or "" when all is well; the trainer has policies of so many bytes."""
        aside, taken = self._host.ledger.aside, self.policies + max(self._reserve, self._copied)
        if aside != taken:
            return f"{aside} bytes are set aside for policies that have taken {taken}"
        if policies > self.policies:
            return f"policies have {policies} bytes and have taken {self.policies}"
        return ""

    @property
    def _reserve(self) -> int:
        return max((each.copies for each in self._needs.values()), default=0)

    def _enter(self, nbytes: int) -> bool:
        self._copied += nbytes
        if self._settle():
            return True
        self._copied -= nbytes
        return False

    def _end_copy(self, nbytes: int) -> None:
        self._copied -= nbytes
        self._shrink()

    def _shrink(self) -> None:
        self._settle()  # less than before always fits
        self._left.set()

    def _settle(self) -> bool:
        """Have the ledger count what is taken; False, and nothing is changed, where it does not fit."""
        evicted = self._host.set_aside(self.policies + max(self._reserve, self._copied))
        self._on_evicted(evicted or ())
        return evicted is not None

"""Accounts for the memory that policies take: host memory comes out of the host tier's budget, from cold adapters.

On a GPU, policies' own tensors are in its memory instead, within its budget. So is what updates keep of their
examples, with room for the largest, since they are computed one at a time.

A policy's own tensors count for as long as it is here. Copies of them, made while it is saved, loaded or published,
count while they exist. Room for the copies of the largest policy is always kept, so that any number of policies can
be saved, if need be one after another. Callers that find no room wait, or get Overloaded with a time to retry after.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_engine.residency.host import HostTier, Key
from mint_engine.residency.policy_device import PolicyDevice

RETRY_S = 5.0
WAIT_S = 10.0  # how long to wait for others' copies before raising Overloaded
_HINT = "lower kvCacheMemory or deviceSlots, or use larger GPUs"


@dataclass(frozen=True)
class Needs:
    """The most bytes of memory that one policy takes: of the host's, and of a GPU's."""

    own: int  # for as long as it is here
    copies: int  # in addition, while it is saved or another state of it is loaded
    published: int  # while it is published
    device: int = 0  # on a GPU, for as long as it is here
    longest: int = 0  # tokens of the longest example that its updates may have: on a GPU, they keep much of it


NOTHING = Needs(0, 0, 0)


class PolicyMemory:
    """One engine's memory for policies. `on_evicted` gets the keys of adapters that have left the host tier.

    `device` is the GPU's, if the engine trains on one. Belongs to the event loop.
    """

    def __init__(
        self,
        host: HostTier,
        on_evicted: Callable[[Iterable[Key]], None],
        wait_s: float = WAIT_S,
        device: PolicyDevice | None = None,
    ) -> None:
        self._host, self._on_evicted, self._wait_s, self.device = host, on_evicted, wait_s, device
        self._needs: dict[str, Needs] = {}
        self._copied = 0
        self._line = asyncio.Lock()  # held by the first that waits for room for copies
        self._left = asyncio.Event()

    @property
    def budget(self) -> int:
        """Bytes of host memory that adapters and policies may take together."""
        return self._host.ledger.budget

    @property
    def policies(self) -> int:
        """Bytes of all policies' own tensors in host memory."""
        return sum(each.own for each in self._needs.values())

    @property
    def lasting(self) -> int:
        """Bytes that are always taken: all policies' own tensors, and room for the copies of the largest."""
        return self.policies + self._reserve

    def take(self, holder: str, needs: Needs) -> None:
        """Reserve room for a policy until `leave`, replacing the holder's previous reservation.

        Raises CapacityExceeded if the budget can never hold it, and Overloaded if others have taken the room.
        """
        self._check_device(holder, needs)
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
        """Release a holder's reservation, if it has one."""
        if self._needs.pop(holder, None) is not None:
            self._shrink()

    def of(self, holder: str) -> Needs:
        """Return what a holder has reserved."""
        return self._needs.get(holder, NOTHING)

    @asynccontextmanager
    async def copying(self, holder: str, nbytes: int) -> AsyncIterator[None]:
        """Reserve room for copies until the context ends (see `begin_copy`)."""
        end = await self.begin_copy(holder, nbytes)
        try:
            yield
        finally:
            end()

    async def begin_copy(self, holder: str, nbytes: int) -> Callable[[], None]:
        """Reserve room for `nbytes` of copies; return a function that releases it.

        First come, first served. Raises Overloaded if others' copies do not leave enough in time, and at once if even
        without these there is no room, as there may not be for more than the largest policy's `copies`.
        """
        if self.policies + nbytes > self.budget:
            raise Overloaded(
                holder,
                f"needs {in_units(nbytes)} of host memory for a while, and policies have {in_units(self.policies)} "
                f"of {in_units(self.budget)}; retry later, train fewer at once, or raise hostMemory",
                retry_after_s=RETRY_S,
            )
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

    @contextmanager
    def updating(self, holder: str, tokens: int) -> Iterator[None]:
        """Reserve what an update keeps on the GPU of a longest example of so many tokens, until the context ends.

        Raises CapacityExceeded if the budget can never hold it, and Overloaded if others have taken the room.
        """
        # A policy that has reserved it has it, even if other processes now leave less: what is here already stays.
        before = self.of(holder)
        if self.device is None or (kept := self.device.kept_of(tokens)) <= self._kept(before, self.device.budget):
            yield
            return
        self._check_update(holder, tokens, kept)
        self._needs[holder] = replace(before, longest=tokens)
        try:
            yield
        finally:
            if holder in self._needs:
                self._needs[holder] = replace(self._needs[holder], longest=before.longest)

    def imbalance(self, policies: int) -> str:
        """Describe an inconsistency, or return "". `policies` is the bytes that the trainer's policies have."""
        aside, taken = self._host.ledger.aside, self.policies + max(self._reserve, self._copied)
        if aside != taken:
            return f"{aside} bytes are set aside for policies that have taken {taken}"
        if policies > self.policies:
            return f"policies have {policies} bytes and have taken {self.policies}"
        return ""

    def _kept(self, needs: Needs, budget: int) -> int:
        """Return the bytes reserved on the GPU for what one policy's updates keep: at most what it leaves by itself.

        Its examples may be shorter than they could be, so it trains in any case, if need be without others.
        """
        most = max(0, budget - needs.device)
        return min(most, self.device.kept_of(needs.longest)) if self.device is not None else 0

    def _check_device(self, holder: str, needs: Needs) -> None:
        """Raise as `take` if the policies do not fit on the GPU once this one takes more there than before."""
        before = self.of(holder)
        if self.device is None or (needs.device <= before.device and needs.longest <= before.longest):
            return
        others = [each for name, each in self._needs.items() if name != holder]
        held, budget = sum(each.device for each in others), self.device.budget
        kept = max(self._kept(each, budget) for each in (*others, needs))
        if held + needs.device + kept <= budget:
            return
        if needs.device > self.device.most:
            there = in_units(self.device.most)
            raise CapacityExceeded(
                holder,
                f"needs {in_units(needs.device)} of GPU memory; base, slots and cache leave {there} for policies; "
                f"{_HINT}",
            )
        update = f", and updates may keep {in_units(kept)} of their longest examples" if kept else ""
        raise Overloaded(
            holder,
            f"needs {in_units(needs.device)} of GPU memory; {len(others)} other policies have "
            f"{in_units(held)} of {in_units(budget)} that are left for policies{update}; "
            f"retry later, train fewer at once, {'lower sampling.maxTokens, ' * bool(kept)}{_HINT}",
            retry_after_s=RETRY_S,
        )

    def _check_update(self, holder: str, tokens: int, kept: int) -> None:
        """Raise as `updating` if the GPU has no room for `kept` bytes beside the policies."""
        device = self.device
        own, held = self.of(holder).device, sum(each.device for each in self._needs.values())
        if device is None or held + kept <= (budget := device.budget):
            return
        what = (
            f"has an example of {tokens} tokens, of which an update keeps {in_units(kept)} more in GPU memory than "
        )
        what += f"is set aside, beside the {in_units(own)} that the policy takes"
        hint = f"give shorter examples (in a wave, lower sampling.maxTokens), {_HINT}"
        if own + kept > device.most:
            there = in_units(device.most)
            raise CapacityExceeded(holder, f"{what}; base, slots and cache leave {there} for both; {hint}")
        there = f"other policies have {in_units(held - own)} of {in_units(budget)} that are left for policies"
        message = f"{what}; {there}; retry later, train fewer at once, {hint}"
        raise Overloaded(holder, message, retry_after_s=RETRY_S)

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
        self._settle()  # reducing the amount always succeeds
        self._left.set()

    def _settle(self) -> bool:
        """Set aside in the ledger what is taken; return False, changing nothing, if it does not fit."""
        evicted = self._host.set_aside(self.policies + max(self._reserve, self._copied))
        self._on_evicted(evicted or ())
        return evicted is not None

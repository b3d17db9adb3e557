"""Calls of one policy, each of which counts once: ordered by sequence number from 1, repeated without effect."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TypeVar, cast

from google.protobuf.message import Message

from mint_contracts.errors import Draining, InvalidRequest, MintError, OutOfOrder, PolicyNotFound
from mint_engine.policies.lease_check import LeaseCheck
from mint_engine.training.policy import PolicySettings

PART_RETRY_S = 1.0
REMEMBERED = 16  # answers; a client that retries has not gone on by more calls than this
REMEMBERED_BYTES = 2 << 20  # of them; the last one is remembered however large

M = TypeVar("M", bound=Message)


def draining() -> Draining:
    """That an engine takes no more calls."""
    return Draining("engine", "is shutting down and saving what it trains; retry", retry_after_s=PART_RETRY_S)


class Calls:
    """One policy's calls, one after another. `lease` is in the names of what they save and publish.

    `life` is the lease that it was created under, on whichever engine: it tells it from others that have had, or will
    have, its name. One that is resumed has no `settings`.
    """

    def __init__(self, policy: str, lease: int, settings: PolicySettings | None) -> None:
        self._policy, self._settings = policy, settings
        self.life = self.lease = lease
        self.lease_check = LeaseCheck()
        self.sequence = 0  # of the last call that took effect
        self.taken_up = 0  # the call behind which this lease has begun
        self.step = 0  # optimizer steps taken
        self._gone = ""  # how it went, once it has
        self._parting = False
        self._stay: Callable[[], Awaitable[None]] | None = None  # to be done before its next call
        self._answers: OrderedDict[int, tuple[bytes, Message]] = OrderedDict()  # beside what was asked
        self._nbytes = 0  # of all of them
        self._turn = asyncio.Lock()
        self._used_at = time.monotonic()

    @property
    def holder(self) -> str:
        """Who has the policy's host memory: another of its name, a wave's say, may have its own for a moment."""
        return f"policy {self._policy!r} of life {self.life}"

    def is_idle(self, since_s: float) -> bool:
        """Whether no call is under way, and the last one has ended at least so long ago."""
        return not self._turn.locked() and time.monotonic() - self._used_at >= since_s

    def check_new(self, settings: PolicySettings) -> None:
        """Raise InvalidRequest unless it is still new, and of these settings."""
        subject = f"policy {self._policy!r}"
        if self.sequence or self._settings is None:
            raise InvalidRequest(subject, f"already exists, at call {self.sequence}; drop it first")
        given, known = asdict(settings), asdict(self._settings)
        if other := [f"{name} {known[name]!r}, not {given[name]!r}" for name in given if given[name] != known[name]]:
            raise InvalidRequest(
                subject, f"already exists with {', '.join(other)}; drop it first, or choose another name"
            )

    def check_life(self, life: int) -> None:
        """Raise PolicyNotFound where `life` is given (not 0) and another one's."""
        if life not in {0, self.life}:
            raise PolicyNotFound(f"policy {self._policy!r}", f"of life {life} was dropped; this is life {self.life}")

    def check_lease(self, lease: int) -> None:
        """Raise PolicyNotFound where `lease` is given (not 0) and another one's: the policy is elsewhere, or was."""
        if lease not in {0, self.lease}:
            reason = f"is here under lease {self.lease}, not {lease}; ask for its engine and its progress again"
            raise PolicyNotFound(f"policy {self._policy!r}", reason)

    async def once(
        self,
        sequence: int,
        digest: bytes,
        sure: Callable[[], Awaitable[None]],
        work: Callable[[], Awaitable[M]],
    ) -> M:
        """The answer to call `sequence`: what `work` gives, or what it gave before. Raises OutOfOrder, and as `work`.

        And as `sure`, before either.

        `digest` is of what is asked: another call of the number is no repeat, as of a program that has started anew.

        A call that fails has not been: its number is to be used again. One whose client goes away goes on to its end,
        so that its number says whether it took effect.
        """
        return await asyncio.shield(asyncio.ensure_future(self._once(sequence, digest, sure, work)))

    async def first(self, work: Callable[[], Awaitable[None]]) -> None:
        """Make the policy, before any call of it. Raises as `work`: those that follow then raise PolicyNotFound."""
        async with self._turn:
            self._refuse_ended()
            try:
                await work()
            except BaseException:
                self._gone = "could not be made"
                raise
            finally:
                self._used_at = time.monotonic()

    async def end(self, gone: str = "was dropped") -> None:
        """Wait for the call under way; those that follow it raise PolicyNotFound, and say that."""
        async with self._turn:
            self._gone = gone

    def end_here(self, gone: str) -> None:
        """As `end`, by the call that is under way."""
        self._gone = gone

    async def rest(self, put_away: Callable[[], Awaitable[None]], stay: Callable[[], Awaitable[None]]) -> None:
        """End with `put_away`, once the call under way has ended: those that follow raise PolicyNotFound.

        Where that raises, so does this, and the policy is there still. Others may have been told that it went:
        `stay` takes that back, at once or else before its next call, which would not be in what they go on with.
        """
        async with self._turn:
            if self._gone:
                return
            self._stay = stay
            try:
                await put_away()
            except MintError:
                with suppress(MintError):
                    await self._stays()
                raise
            self._gone = "was saved and unloaded for lack of calls; resume it"

    async def part(self, save: Callable[[], Awaitable[object]]) -> None:
        """Take no more calls: they raise Draining. `save` once the one under way has ended."""
        self._parting = True
        async with self._turn:
            if not self._gone:
                await save()

    def check_there(self) -> None:
        """Raise PolicyNotFound where it has gone, though its store has yet to be told that it was dropped."""
        if self._gone:
            raise PolicyNotFound(f"policy {self._policy!r}", self._gone)

    async def _once(
        self,
        sequence: int,
        digest: bytes,
        sure: Callable[[], Awaitable[None]],
        work: Callable[[], Awaitable[M]],
    ) -> M:
        async with self._turn:
            self._refuse_ended()
            await sure()
            if sequence in self._answers:
                asked, answer = self._answers[sequence]
                if asked != digest:
                    reason = (
                        f"call {sequence} was already used for a different request; the next is {self.sequence + 1}"
                    )
                    raise OutOfOrder(f"policy {self._policy!r}", reason)
                return cast(M, answer)
            if sequence != self.sequence + 1:
                what = "is too old: its answer is no longer kept" if sequence <= self.sequence else "comes too early"
                raise OutOfOrder(
                    f"policy {self._policy!r}", f"call {sequence} {what}; the next is {self.sequence + 1}"
                )
            await self._stays()
            try:
                given = await work()
            finally:
                self._used_at = time.monotonic()
            self.sequence = sequence
            self._remember(sequence, digest, given)
            return given

    async def _stays(self) -> None:
        if self._stay is not None:
            await self._stay()
            self._stay = None

    def _remember(self, sequence: int, digest: bytes, answer: Message) -> None:
        self._answers[sequence] = digest, answer
        self._nbytes += answer.ByteSize()
        while len(self._answers) > REMEMBERED or (self._nbytes > REMEMBERED_BYTES and len(self._answers) > 1):
            _, (_, oldest) = self._answers.popitem(last=False)
            self._nbytes -= oldest.ByteSize()

    def _refuse_ended(self) -> None:
        self.check_there()
        if self._parting:
            raise draining()

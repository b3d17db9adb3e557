"""Exactly-once calls of one policy: ordered by sequence number from 1; repeating a call has no further effect."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TypeVar, cast

from google.protobuf.message import Message

from mint_contracts.errors import Draining, EngineUnavailable, InvalidRequest, MintError, OutOfOrder, PolicyNotFound
from mint_engine.policies.calls.lease_check import LeaseCheck
from mint_engine.policies.calls.outlasting import outlast
from mint_engine.training.policy import PolicySettings

DRAIN_RETRY_S = 1.0
REMEMBERED = 16  # answers; a client retries a call before it has made this many newer ones
# Appended to the error for a number that somebody has used.
ANOTHER = " (another program trains it, too, or yours has restarted: continue with what GetPolicy returns)"
REMEMBERED_BYTES = 2 << 20  # of all answers together; the last one is remembered whatever its size

M = TypeVar("M", bound=Message)


def draining() -> Draining:
    """Return the error for an engine that takes no more calls."""
    return Draining("engine", "is shutting down and saving what it trains; retry", retry_after_s=DRAIN_RETRY_S)


class Calls:
    """One policy's calls, one after another. `lease` is in the names of what they save and publish.

    `life` is the lease under which the policy was created, on any engine; it distinguishes this policy from earlier
    and later ones of the same name. A resumed policy has no `settings`.
    """

    def __init__(self, policy: str, lease: int, settings: PolicySettings | None) -> None:
        self._policy, self._settings = policy, settings
        self.life = self.lease = lease
        self.lease_check = LeaseCheck()
        self.sequence = 0  # of the last call that took effect
        self.taken_up = 0  # sequence number of the last call before this lease began
        self.step = 0  # optimizer steps taken
        self.cut_off = False  # a call is under way, or the engine could not finish the last one
        self._gone = ""  # why the policy is gone; empty while it is here
        self._draining = False
        self._revert: Callable[[], Awaitable[None]] | None = None  # reverts a failed `rest` before the next call
        self._answers: OrderedDict[int, tuple[bytes, Message]] = OrderedDict()  # with their requests' digests
        self._nbytes = 0  # of all answers
        self._turn = asyncio.Lock()
        self._used_at = time.monotonic()

    @property
    def holder(self) -> str:
        """The policy's holder in `PolicyMemory`; another policy (e.g. a wave's) of the same name has another."""
        return f"policy {self._policy!r} of life {self.life}"

    def is_idle(self, since_s: float) -> bool:
        """Whether no call is under way and the last one ended at least `since_s` ago."""
        return not self._turn.locked() and time.monotonic() - self._used_at >= since_s

    def check_new(self, settings: PolicySettings) -> None:
        """Raise InvalidRequest unless the policy is still new and has these settings."""
        subject = f"policy {self._policy!r}"
        if self.sequence or self._settings is None:
            reason = f"already exists, at call {self.sequence}; continue with it (ResumePolicy), or drop it first"
            raise InvalidRequest(subject, reason)
        given, known = asdict(settings), asdict(self._settings)
        if other := [f"{name} {known[name]!r}, not {given[name]!r}" for name in given if given[name] != known[name]]:
            raise InvalidRequest(
                subject, f"already exists with {', '.join(other)}; drop it first, or choose another name"
            )

    def check_life(self, life: int) -> None:
        """Raise PolicyNotFound if `life` is given (not 0) and is not this policy's."""
        if life not in {0, self.life}:
            raise PolicyNotFound(f"policy {self._policy!r}", f"of life {life} was dropped; this is life {self.life}")

    def check_lease(self, lease: int) -> None:
        """Raise PolicyNotFound if `lease` is given (not 0) and is not the current one: the policy has moved."""
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
        """Return the answer to call `sequence`: the result of `work`, or the remembered one if this is a repeat.

        `sure` runs first, to check that the policy is still this engine's. `digest` identifies the request: a
        different request under a used number is not a repeat; a restarted client, for example, may send one.

        A call that fails does not count: its number is to be used again. A call whose client disconnects runs to its
        end, so that its number tells whether it took effect. Raises OutOfOrder, and as `sure` and `work`.
        """
        return await outlast(asyncio.create_task(self._once(sequence, digest, sure, work)), self._policy)

    async def first(self, work: Callable[[], Awaitable[None]]) -> None:
        """Make the policy before its first call. If `work` raises, so does this; later calls raise PolicyNotFound."""
        async with self._turn:
            try:
                self._refuse_ended()
                await work()
            except BaseException:
                self._gone = "could not be made"
                raise
            finally:
                self._used_at = time.monotonic()

    async def begin_anew(self, drop_gradient: Callable[[], Awaitable[None]]) -> None:
        """Run `drop_gradient` after the call under way. Raises EngineUnavailable if the policy is gone by then."""
        async with self._turn:
            if self._gone:  # maybe saved just now, so that resuming it again finds it
                raise EngineUnavailable(
                    f"policy {self._policy!r}", f"{self._gone}; retry", retry_after_s=DRAIN_RETRY_S
                )
            self._refuse_ended()
            await drop_gradient()
            self._used_at = time.monotonic()

    async def end(self, gone: str = "was dropped") -> None:
        """Wait for the call under way, then make later calls raise PolicyNotFound with the reason `gone`."""
        async with self._turn:
            self._gone = gone

    def end_here(self, gone: str) -> None:
        """As `end`, but called by the call that is under way."""
        self._gone = gone

    async def rest(self, put_away: Callable[[], Awaitable[None]], revert: Callable[[], Awaitable[None]]) -> None:
        """Run `put_away` after the call under way, then make later calls raise PolicyNotFound.

        If `put_away` raises, so does this, and the policy stays. The store may say by then that it was let go;
        `revert` undoes that, at once or else before the next call, which would be missing from what another engine
        resumes.
        """
        async with self._turn:
            if self._gone:
                return
            self._revert = revert
            try:
                await put_away()
            except MintError:
                with suppress(MintError):
                    await self._revert_rest()
                raise
            self._gone = "was saved and unloaded for lack of calls; resume it"

    def refuse(self) -> None:
        """Refuse further calls with Draining, also those that already wait for their turn."""
        self._draining = True

    async def leave(self, save: Callable[[], Awaitable[object]]) -> None:
        """Run `save` once the call under way has ended, unless the policy is gone by then."""
        async with self._turn:
            if not self._gone:
                await save()

    def check_present(self) -> None:
        """Raise PolicyNotFound if the policy is gone, even if the store does not know of its drop yet."""
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
                    raise self._misnumbered(f"call {sequence} was already used for a different request", ANOTHER)
                return cast(M, answer)
            if sequence < 1:
                raise self._misnumbered(f"has no call {sequence}: calls are numbered from 1")
            if sequence <= self.sequence:
                raise self._misnumbered(f"call {sequence} is too old: its answer is no longer kept", ANOTHER)
            if sequence != self.sequence + 1:
                raise self._misnumbered(f"call {sequence} comes too early")
            await self._revert_rest()
            self.cut_off = True
            try:
                given = await work()
                self.cut_off = False
            except MintError as error:
                self.cut_off = isinstance(error, EngineUnavailable | Draining)
                raise
            finally:
                self._used_at = time.monotonic()
            self.sequence = sequence
            self._remember(sequence, digest, given)
            return given

    async def _revert_rest(self) -> None:
        if self._revert is not None:
            await self._revert()
            self._revert = None

    def _remember(self, sequence: int, digest: bytes, answer: Message) -> None:
        self._answers[sequence] = digest, answer
        self._nbytes += answer.ByteSize()
        while len(self._answers) > REMEMBERED or (self._nbytes > REMEMBERED_BYTES and len(self._answers) > 1):
            _, (_, oldest) = self._answers.popitem(last=False)
            self._nbytes -= oldest.ByteSize()

    def _misnumbered(self, what: str, why: str = "") -> OutOfOrder:
        return OutOfOrder(f"policy {self._policy!r}", f"{what}; the next is {self.sequence + 1}{why}")

    def _refuse_ended(self) -> None:
        self.check_present()
        if self._draining:
            raise draining()

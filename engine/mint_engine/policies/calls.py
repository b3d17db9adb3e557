"""Calls of one policy, each of which counts once: ordered by sequence number from 1, repeated without effect."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from google.protobuf.message import Message

from mint_contracts.errors import OutOfOrder, PolicyNotFound

REMEMBERED = 16  # answers; a client that retries has not gone on by more calls than this

M = TypeVar("M", bound=Message)


class Calls:
    """One policy's calls, one after another. `lease` is in the names of what they save and publish."""

    def __init__(self, policy: str, lease: int) -> None:
        self._policy = policy
        self.lease = lease
        self.sequence = 0  # of the last call that took effect
        self._ended = False
        self._answers: OrderedDict[int, Message] = OrderedDict()
        self._turn = asyncio.Lock()

    async def once(self, sequence: int, work: Callable[[], Awaitable[M]]) -> M:
        """The answer to call `sequence`: what `work` gives, or what it gave before. Raises OutOfOrder, and as `work`.

        A call that fails has not been: its number is to be used again. One whose client goes away goes on to its end,
        so that its number says whether it took effect.
        """
        return await asyncio.shield(asyncio.ensure_future(self._once(sequence, work)))

    async def end(self) -> None:
        """Wait for the call under way; those that follow it raise PolicyNotFound."""
        async with self._turn:
            self._ended = True

    async def _once(self, sequence: int, work: Callable[[], Awaitable[M]]) -> M:
        async with self._turn:
            if self._ended:
                raise PolicyNotFound(f"policy {self._policy!r}", "was dropped")
            if sequence in self._answers:
                return cast(M, self._answers[sequence])
            if sequence != self.sequence + 1:
                what = "has no answer any more" if sequence <= self.sequence else "comes too early"
                raise OutOfOrder(
                    f"policy {self._policy!r}", f"call {sequence} {what}; the next is {self.sequence + 1}"
                )
            answer = await work()
            self.sequence = sequence
            self._answers[sequence] = answer
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
            return answer

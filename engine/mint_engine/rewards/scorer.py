"""Scoring by a wave's reward: built-in rewards on a thread, a user's service over gRPC, and sums of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mint_contracts.awaiting import gather_or_cancel
from mint_contracts.errors import BadReward, InvalidRequest
from mint_contracts.shared_threads import SharedThreads
from mint_contracts.training import Reward
from mint_engine.rewards.builtin import Builtin, built_in
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.service import Retry, ServiceClient, once

MAX_PARTS = 32  # of a sum, nested sums included
MOST_REWARD = 1e30  # squares of rewards, and sums of squares, stay finite
QUEUED = 64  # completions for a thread at once: some milliseconds of the event loop, on which tokens are sent, too

# Threads of their own: users' rewards are bounded in time for one completion, not for all, and requests need threads,
# too. Patterns and schemas, which may take seconds each, have one for each process that checks them, so that policies
# with other rewards do not wait for them. Waves share each: one whose patterns are slow delays others by one check.
_threads = SharedThreads(1, "rewards")
_checking = {"regex": SharedThreads(1, "patterns"), "jsonSchema": SharedThreads(1, "schemas")}


@dataclass(frozen=True)
class Part:
    """One term of the sum."""

    name: str
    weight: float
    source: Builtin | ServiceClient


class Scorer:
    """Scores completions by one `Reward`. Raises InvalidRequest if that is unusable; `check` finds further errors."""

    def __init__(self, reward: Reward, wave: str = "") -> None:
        """`wave` shares the threads with other waves."""
        self._parts, self._wave = _parts(reward, 1.0), wave
        if len(self._parts) > MAX_PARTS:
            raise InvalidRequest("reward.sum", f"has {len(self._parts)} parts; at most {MAX_PARTS}")

    async def check(self) -> None:
        """Raise InvalidRequest for a pattern or schema that is invalid or takes too long; RewardUnavailable."""
        for part in self._parts:
            if isinstance(part.source, Builtin) and part.source.trial is not None:
                await _threads_of(part).run(self._wave, part.source.trial)

    def check_example(self, empty: Completion) -> None:
        """Raise BadExample if no completion of the example could be judged, for lack of an answer, say."""
        for part in self._parts:
            if isinstance(part.source, Builtin) and part.source.fits is not None:
                part.source.fits(empty)

    async def score(
        self, policy: str, step: int, completions: Sequence[Completion], retry: Retry = once
    ) -> list[float]:
        """Return the reward of each completion; `retry` repeats calls of services that are unavailable.

        Raises BadReward for a reward that is not finite or beyond `MOST_REWARD`; RewardUnavailable, InvalidRequest or
        BadExample.
        """
        totals = [0.0] * len(completions)
        for part in self._parts:
            if isinstance(part.source, Builtin):
                rewards = await self._judged(part, part.source, completions)
            else:
                rewards = await part.source.score(policy, step, completions, retry)
            for at, reward in enumerate(rewards):
                if not math.isfinite(reward):
                    raise BadReward(
                        f"policy {policy!r}",
                        f"got {reward} from {part.name} for {completions[at].text[:80]!r} at step {step}; "
                        "a reward must be a finite number",
                    )
                totals[at] += part.weight * reward
        for at, total in enumerate(totals):
            if not abs(total) <= MOST_REWARD:
                raise BadReward(
                    f"policy {policy!r}",
                    f"got {total} for {completions[at].text[:80]!r} at step {step}; a reward, and a sum of rewards, "
                    f"must be within {MOST_REWARD:g} of 0",
                )
        return totals

    async def _judged(self, part: Part, source: Builtin, completions: Sequence[Completion]) -> list[float]:
        """Judge completions one by one, so that others can come between, and at most one goes on after an error."""
        threads, rewards = _threads_of(part), list[float]()
        for first in range(0, len(completions), QUEUED):
            some = completions[first : first + QUEUED]
            rewards += await gather_or_cancel(threads.run(self._wave, partial(source.judge, each)) for each in some)
        return rewards

    async def close(self) -> None:
        """Close connections to services."""
        for part in self._parts:
            if isinstance(part.source, ServiceClient):
                await part.source.close()


def _threads_of(part: Part) -> SharedThreads:
    return _checking.get(part.name, _threads)


def _parts(reward: Reward, weight: float) -> list[Part]:
    named = reward.kinds
    if len(named) != 1:
        raise InvalidRequest("reward", f"must be exactly one kind; it has {', '.join(named) or 'none'}")
    if not math.isfinite(weight):
        raise InvalidRequest("reward.sum", f"has a weight of {weight}")
    if reward.sum:
        return [part for each in reward.sum for part in _parts(each.reward, weight * each.weight)]
    if reward.service is not None:
        return [Part("service", weight, ServiceClient(reward.service))]
    return [Part(named[0], weight, built_in(reward))]

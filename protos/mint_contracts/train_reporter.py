"""Reporting to the placement map how policies get on: each engine for its own, fenced by its incarnation."""

from collections.abc import Mapping, Sequence

from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import call, text
from mint_contracts.training_records import Progress


class TrainReporter:
    """One engine's reports of training. They follow its `MapReporter`'s, which makes its incarnation known."""

    def __init__(self, redis: Redis, base: str, engine: str) -> None:
        self._redis, self._base, self._engine = redis, base, engine

    async def report(
        self,
        incarnation: int,
        changed: Sequence[Progress],
        gone: Sequence[str],
        rewards: Mapping[str, tuple[int, Sequence[float]]],
        *,
        full: bool,
    ) -> tuple[str, ...] | None:
        """Write progress, and rewards of finished steps: of each policy those from a step (counted from 0) on.

        Returns the policies whose list in the map is shorter than that, which must be told from the start; None when
        the map does not know this incarnation. With `full`, `changed` is everything. Raises StaleEpoch when a later
        start of this engine has reported.
        """
        base, policies = self._base, list(rewards)
        names = [keys.engines(base), keys.progress(base, self._engine)]
        names += [keys.rewards(base, policy) for policy in policies]
        pairs = [[each.policy, text(each)] for each in changed]
        lists = [[first, [repr(float(value)) for value in values]] for first, values in rewards.values()]
        args = [self._engine, str(incarnation), "1" if full else "0", text(pairs), text(list(gone)), text(lists)]
        short = await call(self._redis, "progress", names, [*args, keys.changed(base)])
        return None if short == -1 else tuple(policies[int(at) - 1] for at in short)

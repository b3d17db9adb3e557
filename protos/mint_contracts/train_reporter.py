"""Reporting policies' progress to the placement map: each engine for its own, fenced by its incarnation."""

from collections.abc import Mapping, Sequence

import msgspec
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import call, text
from mint_contracts.step_figures import Curve
from mint_contracts.training_records import Progress


class MissingRewards(msgspec.Struct, frozen=True):
    """Policies whose rewards the map did not take: its list is too `short`, or it has no lease for them (`unleased`).

    Send the first from the start; send the others from the start too, once the map has their leases.
    """

    short: tuple[str, ...] = ()
    unleased: tuple[str, ...] = ()


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
        curves: Mapping[str, Curve] | None = None,
    ) -> MissingRewards | None:
        """Write progress, and each policy's rewards of finished steps from a step (counted from 0) on, and its curve.

        A curve is whole, and of a policy that `rewards` has, too.
        Returns which rewards the map lacks; None if it does not know this incarnation. With `full`, `changed` is
        everything. Raises StaleEpoch if a later start of this engine has reported.
        """
        base, policies, curves = self._base, list(rewards), curves or {}
        names = [keys.engines(base), keys.progress(base, self._engine), keys.trains(base, self._engine)]
        names += [keys.rewards(base, policy) for policy in policies] + [keys.curve(base, policy) for policy in curves]
        pairs = [[each.policy, text(msgspec.structs.replace(each, incarnation=incarnation))] for each in changed]
        lists = [[name, first, [repr(float(value)) for value in rest]] for name, (first, rest) in rewards.items()]
        lists += [[name, 0, [text(curve)] if curve else []] for name, curve in curves.items()]
        args = [self._engine, str(incarnation), "1" if full else "0", text(pairs), text(list(gone)), text(lists)]
        answer = await call(self._redis, "progress", names, [*args, keys.changed(base)])
        if answer == -1:
            return None
        return MissingRewards(*[tuple(policies[at - 1] for at in each if at <= len(policies)) for each in answer])

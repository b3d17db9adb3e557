"""Writing the map's part about training, which only the operator does, fenced by its epoch."""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.functions import call, text
from mint_contracts.training_records import TrainAssignment, TrainChange, WaveTraining

OPS_PER_CALL = 250  # small, as an assignment may contain its own dataset


class TrainWriter:
    """The operator's writes about training. A write under an old epoch raises StaleEpoch and changes nothing."""

    def __init__(self, redis: Redis, epoch: int) -> None:
        self._redis = redis
        self._epoch = epoch

    async def apply(self, base: str, change: TrainChange) -> None:
        """Write a change; the engines that it touches are notified once the complete change is there."""
        called = sorted({*change.set_trains, *change.del_trains, *change.called})
        parts = _split(change)
        for part in parts[:-1]:
            await self._apply_part(base, part, ())
        await self._apply_part(base, parts[-1], called)

    async def _apply_part(self, base: str, part: TrainChange, called: Sequence[str]) -> None:
        engines = sorted({*part.set_trains, *part.del_trains})
        ops = {
            "training": _ops({each.wave: each for each in part.set_training}, part.del_training),
            "trains": [
                _ops({each.policy: each for each in part.set_trains.get(engine, ())}, part.del_trains.get(engine, ()))
                for engine in engines
            ],
        }
        names = [keys.epoch(base), keys.training(base), keys.editions(base)]
        names += [keys.trains(base, engine) for engine in engines]
        names += [key(base, policy) for policy in part.del_rewards for key in (keys.rewards, keys.curve)]
        channels = [[engine, keys.called(base, engine)] for engine in called]
        await call(self._redis, "train", names, [str(self._epoch), text(ops), text(channels), keys.BASES, base])


def _ops(records: Mapping[str, WaveTraining | TrainAssignment], names: Sequence[str]) -> dict[str, Any]:
    return {"set": [[name, text(record)] for name, record in records.items()], "del": list(names)}


def _split(change: TrainChange) -> list[TrainChange]:
    """Split a change into parts of at most OPS_PER_CALL leases; old ones are withdrawn before new ones are given."""
    parts = [TrainChange(del_trains={engine: gone}) for engine, gone in sorted(change.del_trains.items())]
    for engine, leases in sorted(change.set_trains.items()):
        for start in range(0, len(leases), OPS_PER_CALL):
            parts.append(TrainChange(set_trains={engine: leases[start : start + OPS_PER_CALL]}))
    first = TrainChange(set_training=change.set_training)  # before any lease that needs it
    last = TrainChange(del_training=change.del_training, del_rewards=change.del_rewards)
    parts = [part for part in (first, *parts, last) if part]
    return parts if len(parts) > 1 and not _small(change) else [change]


def _small(change: TrainChange) -> bool:
    """Whether one call can carry the complete change."""
    lists = [change.set_training, change.del_training, change.del_rewards]
    lists += [*change.set_trains.values(), *change.del_trains.values()]
    return sum(len(each) for each in lists) <= OPS_PER_CALL

"""The statuses of waves and bases after a plan, and their conditions."""

from typing import Any

import msgspec

from mint_contracts.records import EngineView, Failure, MapState, Tier
from mint_contracts.resources import (
    AdapterWaveStatus,
    BaseModelStatus,
    Condition,
)
from mint_operator.planning.plan import plan
from mint_operator.planning.snapshot import EnginePod, Snapshot
from tests.operator.worlds import KEY, base, engine, placed, snapshot, wave

TERMINAL = Failure("RankTooLarge", "rank 128 is above 64", terminal=True)
RETRYABLE = Failure("SourceUnavailable", "the bucket did not answer", terminal=False)
NO_SOURCE = Failure("SourceNotFound", "nothing at pvc://models/smol", terminal=True)
CORRUPT = Failure("CorruptFile", "model.safetensors is cut off", terminal=True)


def ready(conditions: list[Condition], kind: str = "Ready") -> tuple[str, str]:
    found = next(each for each in conditions if each.type == kind)
    return found.status, found.reason


def stalled(status: AdapterWaveStatus | BaseModelStatus) -> str:
    """Return the reason of the condition Stalled, which exists only if a person must act; empty without it."""
    return while_it_holds(status, "Stalled")


def reconciling(status: AdapterWaveStatus | BaseModelStatus) -> str:
    """Return the reason of Reconciling, which exists only if engines do not run with the latest spec yet."""
    return while_it_holds(status, "Reconciling")


def while_it_holds(status: AdapterWaveStatus | BaseModelStatus, kind: str) -> str:
    found = [each for each in status.conditions if each.type == kind]
    assert all(each.status == "True" for each in found)
    return found[0].reason if found else ""


def with_pods(of: Snapshot, *pods: EnginePod) -> Snapshot:
    return msgspec.structs.replace(of, pods={KEY: pods})


def wave_after(engines: list[EngineView], **changes: Any) -> AdapterWaveStatus:
    """Return the status of a wave of two adapters on two engines (a/0 on smol-0, a/1 on smol-1)."""
    of = snapshot(base(2, 2), [changes.pop("of", wave("w", ["a/0", "a/1"]))])
    first = placed(plan(of))
    known = msgspec.structs.replace(
        of.maps[KEY], state=MapState(1, None, first, {}), engines=tuple(engines), **changes
    )
    return plan(msgspec.structs.replace(of, maps={KEY: known})).wave_statuses["team/w"]


HELD = [engine(0, {"a/0": Tier.DEVICE}), engine(1, {"a/1": Tier.DEVICE})]


def base_after(engines: list[EngineView], pods: list[EnginePod], low: int = 2, **changes: Any) -> BaseModelStatus:
    of = with_pods(snapshot(base(low, 2, **changes), [wave("w", ["a/0"], replicas=2)], engines), *pods)
    return plan(of).base_statuses[KEY]

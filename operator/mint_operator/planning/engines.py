"""The engines of one base as planning sees them: alive, ready, lost, and what they hold."""

import operator
from collections.abc import Collection, Mapping, Sequence

import msgspec

from mint_contracts.records import EngineRecord, EngineView, Failure, Held, Tier
from mint_operator.planning.groups import leader_of
from mint_operator.planning.room import lacks_room
from mint_operator.planning.snapshot import BaseMap, EnginePod

AWAY_GRACE_S = 30.0  # a deleted pod is back within this on a healthy node, and reloads what it held
LOADING_GRACE_S = 120.0  # a reporting engine has drained, or loaded most bases, by then: moving would be no faster

_NOBODY = EnginePod(name="")
_NOTHING: Mapping[str, Held] = {}


class Engine(msgspec.Struct, frozen=True):
    """One engine that the base should have now.

    `alive`: it has a heartbeat, from its present pod. `ready`: it answers requests. `lost`: away, or alive and not
    ready, for longer than its grace while another engine is ready; its adapters move elsewhere if they fit.
    `leaving`: about to be removed or restarted; it keeps what it holds until that is ready elsewhere, and is given
    nothing new.
    """

    name: str
    ordinal: int
    record: EngineRecord | None = None
    held: Mapping[str, Held] = {}
    pod: EnginePod = _NOBODY
    lost: bool = False
    leaving: bool = False
    tiers: tuple[int, int, int] = (0, 0, 0)  # copies that it reports: Device, Host, Disk
    view: EngineView | None = None  # the source of record and holdings

    @property
    def alive(self) -> bool:
        """Whether it has a heartbeat."""
        return self.record is not None

    @property
    def ready(self) -> bool:
        """Whether it answers requests now."""
        return self.record is not None and self.record.ready

    @property
    def unheard(self) -> bool:
        """Whether its pod is ready, but it has no heartbeat."""
        return not self.alive and self.pod.ready and not self.pod.terminating

    @property
    def starting(self) -> bool:
        """Whether it has no heartbeat because its pod is being created, scheduled or started.

        A pod whose containers run says no more than that on a node that has died. Its engine reports within seconds,
        also while it loads its base: it is starting only if none of that name ever has.
        """
        pod = self.pod
        awaited = pod.pending or self.view is None
        return awaited and not (self.alive or pod.ready or pod.terminating or pod.trouble)

    @property
    def unplaced(self) -> bool:
        """Whether it does not even start, for lack of room."""
        return not self.ready and self.pod.trouble is not None and lacks_room(self.pod.trouble)

    @property
    def failing(self) -> bool:
        """Whether it does not serve and it or its pods say why: as it is, it may never serve."""
        return not self.ready and self.failure is not None

    @property
    def training_bytes(self) -> int:
        """Host memory that its policies take."""
        return self.record.training_bytes if self.record is not None else 0

    @property
    def failure(self) -> Failure | None:
        """Why it does not serve: by its own report, else by its pods."""
        return (self.record.failure if self.record else None) or self.pod.trouble


def engine_name(base_name: str, ordinal: int) -> str:
    """Return the name of an engine, which is its pod's name."""
    return f"{base_name}-{ordinal}"


def expected(
    base_name: str,
    count: int,
    pods: Sequence[EnginePod],
    known: BaseMap | None,
    before: Sequence[Engine] = (),
    leaving: Collection[int] = (),
    unmade: Failure | None = None,
) -> tuple[Engine, ...]:
    """Return the engines 0 to `count` - 1 of a base, in that order. `known` is None if the map could not be read.

    `unmade` says why engines without a pod have none.

    An unchanged engine stays the same object as in `before`; if all are unchanged, so does the tuple.
    """
    by_pod = _with_workers({pod.name: pod for pod in pods})
    if unmade is not None:
        names = [engine_name(base_name, ordinal) for ordinal in range(count)]
        by_pod = dict.fromkeys(names, EnginePod(name="", trouble=unmade)) | dict(by_pod)
    views = {} if known is None else {view.engine: view for view in known.engines}
    seen = [
        _seen(base_name, ordinal, by_pod, views, before[ordinal] if ordinal < len(before) else None)
        for ordinal in range(count)
    ]
    others = known if known is not None and any(engine.ready for engine in seen) else None
    gone = others is not None and (others.away_s or others.unready_s)
    if gone or leaving or any(engine.lost or engine.leaving for engine in seen):
        seen = [_standing(engine, others, leaving) for engine in seen]
    same = len(seen) == len(before) and all(map(operator.is_, seen, before))
    return tuple(before) if same else tuple(seen)


def _with_workers(pods: Mapping[str, EnginePod]) -> Mapping[str, EnginePod]:
    """Return the pods, where each leader has the trouble of any of its workers."""
    for name, pod in pods.items():
        leader = pods.get(leader_of(name)) if pod.trouble is not None else None
        if pod.trouble is not None and leader is not None and leader.trouble is None:
            trouble = msgspec.structs.replace(pod.trouble, message=f"{name}: {pod.trouble.message}")
            pods = {**pods, leader.name: msgspec.structs.replace(leader, trouble=trouble)}
    return pods


def _seen(
    base_name: str,
    ordinal: int,
    pods: Mapping[str, EnginePod],
    views: Mapping[str, EngineView],
    before: Engine | None,
) -> Engine:
    """Return an engine as seen by itself, without regard to others."""
    name = before.name if before is not None else engine_name(base_name, ordinal)
    pod, view = pods.get(name, _NOBODY), views.get(name)
    if before is not None and before.view is view and (before.pod is pod or before.pod == pod):
        return before
    record = trusted(view, pod)
    held = view.held if view is not None and record is not None else _NOTHING
    return Engine(name, ordinal, record, held, pod, tiers=_tiers(held), view=view)


def _standing(engine: Engine, known: BaseMap | None, leaving: Collection[int]) -> Engine:
    lost = known is not None and not engine.ready and grace_left_s(engine.name, known) < 0.0
    goes = engine.ordinal in leaving
    if (engine.lost, engine.leaving) == (lost, goes):
        return engine
    return msgspec.structs.replace(engine, lost=lost, leaving=goes)


def grace_left_s(engine: str, known: BaseMap) -> float:
    """Return for how much longer to wait for an engine that is not ready, while others could take over from it.

    A base may take twenty minutes to load: a restarted engine's reports alone do not bring back what it held, nor do
    starts that each fail before the base is loaded. A draining engine reports until it ends, and is away from then.
    """
    away_s, unready_s = known.away_s.get(engine, 0.0), known.unready_s.get(engine, 0.0)
    return min(AWAY_GRACE_S - away_s, LOADING_GRACE_S - unready_s)


def _tiers(held: Mapping[str, Held]) -> tuple[int, int, int]:
    tiers = [each.tier for each in held.values()]
    return tiers.count(Tier.DEVICE), tiers.count(Tier.HOST), tiers.count(Tier.DISK)


def trusted(view: EngineView | None, pod: EnginePod) -> EngineRecord | None:
    """Return an engine's own record, unless it is from a pod that has been replaced or is about to end.

    A killed pod's heartbeat lasts for a few more seconds; its address distinguishes it from its successor of the same
    name. The record of an engine without a pod is trusted.
    """
    if view is None or view.record is None:
        return None
    if not pod.name:
        return view.record
    host = view.record.address.rpartition(":")[0].strip("[]")
    return view.record if host == pod.ip and not pod.terminating else None

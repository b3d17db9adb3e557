"""Which engines hold which adapters: as little movement as can be, then as even a load as can be.

Pure. Each policy is one file: `place_keep` says what stays, then `POLICIES` see to what lacks a good copy, the most
urgent first. Every place states in its `why` what decided.

A placement is worked out again from the last one where only some adapters changed; the result is the same as from
nothing (a property test holds that), since what stays where it is depends on nothing but itself.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from mint_contracts.records import Place, Placement
from mint_operator.placing.board import Board, Copies, Limits, Load
from mint_operator.placing.hot import hot, spread_hot
from mint_operator.placing.keep import keep, keep_spare, keep_within
from mint_operator.placing.lost import leave_lost
from mint_operator.placing.pack import pack
from mint_operator.placing.table import Policy, Table, Warmth, lacking, warmth
from mint_operator.planning.adapters import Want
from mint_operator.planning.asking import Ask
from mint_operator.planning.engines import Engine
from mint_operator.planning.shards import Shards, differing, flat, shards
from mint_operator.planning.sizes import Size

POLICIES: tuple[Policy, ...] = (leave_lost, pack, spread_hot)


class Task(msgspec.Struct, frozen=True):
    """What a placement is worked out from. `existing` is what the map says now.

    `turns` gives each admitted wave its turn; `listed` says which adapters it names. `demand` is how many requests of
    each adapter are in flight.
    """

    engines: Sequence[Engine]
    limits: Limits
    wants: Mapping[str, Want]
    existing: Mapping[str, Placement]
    sizes: Mapping[str, Size] = {}
    turns: Mapping[str, int] = {}
    listed: Mapping[str, Ask] = {}
    reserved: Mapping[str, int] = {}  # engine -> slots of policies that train there
    demand: Mapping[str, float] = {}

    def in_turn(self, names: Collection[str]) -> list[str]:
        """Adapters in the order of their most urgent waves, as each wave lists them."""
        waves = {wave for name in names for wave in self.wants[name].waves}
        ordered: dict[str, None] = {}
        for wave in sorted(waves & self.turns.keys(), key=self.turns.__getitem__):
            ordered |= {name: None for name in self.listed[wave].by_name if name in names}
        return [*ordered, *sorted(names - ordered.keys())]

    @property
    def floor(self) -> object:
        """What every adapter's place depends on."""
        engines = [(engine.name, engine.lost, engine.leaving, engine.training_bytes) for engine in self.engines]
        return self.limits, self.reserved, engines


class Placed(msgspec.Struct, frozen=True):
    """A placement with what is needed to go on from it.

    `pending` lack a copy, or have one on an engine that is lost or about to go.
    """

    task: Task
    records: Mapping[str, Placement]
    loads: Mapping[str, Load]
    given: Copies
    pending: frozenset[str]
    changed: frozenset[str]  # adapters that were looked at: what all others had, they have
    afresh: bool  # worked out from nothing


def place(task: Task, before: Placed | None = None) -> Placed:
    """Places of every want; fewer than asked for only if there are too few engines."""
    if before is None or before.task.floor != task.floor:
        return _place_all(task)
    names = _changed(task, before)
    board = Board(task.engines, task.limits, task.sizes, before.loads, before.given)
    for name in (name for name in names if name in before.records):
        size = before.task.sizes.get(name, Size(rank=task.limits.max_rank))
        for each in before.records[name].places:
            board.take(each.engine, name, size)
    kept = _keep(board, task, names)
    return _place_all(task) if board.crowded() else _finish(task, board, kept, before.records, names)


def _place_all(task: Task) -> Placed:
    whole = task
    task = msgspec.structs.replace(task, wants=flat(task.wants), existing=flat(task.existing))
    board = Board(task.engines, task.limits, task.sizes, reserved=task.reserved)
    kept = _keep(board, task, task.wants)
    if board.crowded():
        board = Board(task.engines, task.limits, task.sizes, reserved=task.reserved)
        kept = _keep_within(board, task)
    placed = _finish(task, board, kept, {}, {*task.wants, *task.existing}, afresh=True)
    return msgspec.structs.replace(placed, task=whole)


def _changed(task: Task, before: Placed) -> set[str]:
    """Adapters whose place may not be what it was."""
    names = set(before.pending)
    names |= differing(task.wants, before.task.wants)
    names |= differing(task.existing, before.records)
    names |= {name for name in differing(task.sizes, before.task.sizes) if name in before.records}
    return names.union(hot(task.demand, task.wants), hot(before.task.demand, before.task.wants))


def _keep(board: Board, task: Task, names: Iterable[str]) -> dict[str, list[Place]]:
    """The places that stay, whether or not engines can hold them."""
    kept, crowd = {}, dict[str, Want]()
    for name in names:
        want = task.wants.get(name)
        if want is None:
            continue
        before = _existing(task, name)
        going = board.any_leaving and any(board.leaving(place.engine) for place in before)
        if len(before) > want.replicas or going:
            crowd[name] = want
        else:
            kept[name] = keep(board, want, before, {}) if before else []
    known = warmth(task.engines, crowd) if crowd else {}
    for name, want in crowd.items():
        kept[name] = keep(board, want, _existing(task, name), known.get(name, {}), task.demand.get(name, 0.0))
    return kept


def _keep_within(board: Board, task: Task) -> dict[str, list[Place]]:
    kept: dict[str, list[Place]] = {name: [] for name in task.in_turn(set(task.wants))}
    known = warmth(task.engines, task.wants)
    for in_slot in (True, False):
        for name, places in kept.items():
            before = _existing(task, name)
            keep_within(board, task.wants[name], before, places, known.get(name, {}), in_slot=in_slot)
    for name in hot(task.demand, task.wants):
        keep_spare(board, task.wants[name], _existing(task, name), kept[name], task.demand[name])
    return kept


def _existing(task: Task, name: str) -> Sequence[Place]:
    record = task.existing.get(name)
    return () if record is None else record.places


def _finish(
    task: Task,
    board: Board,
    kept: dict[str, list[Place]],
    settled: Mapping[str, Placement],
    names: Collection[str],
    *,
    afresh: bool = False,
) -> Placed:
    """Let the policies see to what lacks a good copy."""
    needy = task.in_turn({name for name, places in kept.items() if _lacks(board, task.wants[name], places)})
    if task.demand:
        needy.sort(key=lambda name: -task.demand.get(name, 0.0))  # what is asked for now returns first
    asked = hot(task.demand, task.wants)
    looked_at = {name: task.wants[name] for name in (*needy, *asked)}
    known: Warmth = warmth(task.engines, looked_at) if looked_at else {}
    table = Table(board, task.wants, needy, kept, settled, known, task.demand, asked)
    for policy in POLICIES:
        policy(table)
    placed = table.placed
    return Placed(
        task=task,
        records=_merged(task, settled, placed, names),
        loads=board.loads,
        given=board.given,
        pending=frozenset(name for name in needy if _lacks(board, task.wants[name], placed[name])),
        changed=frozenset(names) | placed.keys(),
        afresh=afresh,
    )


def _lacks(board: Board, want: Want, places: Sequence[Place]) -> bool:
    if lacking(board, want, places) > 0:
        return True
    if not board.any_lost and not board.any_leaving:
        return False
    return any(board.lost(place.engine) or board.leaving(place.engine) for place in places)


def _merged(
    task: Task, settled: Mapping[str, Placement], placed: Mapping[str, Sequence[Place]], names: Iterable[str]
) -> Shards[Placement]:
    """The map's records; one that the map has already stays the same object."""
    made = {}
    for name, places in placed.items():
        want = task.wants[name]
        record = Placement(name, want.source, want.waves, tuple(places), want.priority)
        known = task.existing.get(name)
        made[name] = known if known is not None and known == record else record
    return shards(settled).changed(made, [name for name in names if name not in placed]) if settled else Shards(made)


def adopted(engines: Sequence[Engine], wants: Mapping[str, Want]) -> dict[str, Placement]:
    """Where engines hold what is wanted already: what stands in for existing places when the map was lost."""
    found = {}
    why = "held here when the placement map was lost"
    for name, holders in warmth(engines, wants).items():
        want = wants[name]
        enough = sorted(engine for engine, held in holders.items() if held >= want.residency.warmth)
        if enough:
            places = tuple(Place(engine=engine, residency=want.residency, why=why) for engine in enough)
            found[name] = Placement(name, want.source, want.waves, places, want.priority)
    return found

"""Decides which engines hold which adapters: with the least movement first, the most even load second.

Pure. Each policy is one file: `keep` decides what stays, then `POLICIES` place what lacks a good copy, the most
urgent first. The `why` of every place states the reason.

If only some adapters changed, a placement is derived from the last one; the result is the same as from scratch (a
property test checks this), since whether an adapter stays where it is depends on that adapter alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from mint_contracts.records import Place, Placement
from mint_operator.placing.board import Board, Copies, Limits, Load
from mint_operator.placing.hot import hot, spread_hot
from mint_operator.placing.keep import keep, keep_spare, keep_within
from mint_operator.placing.lost import leave_lost
from mint_operator.placing.pack import pack
from mint_operator.placing.precedence import put_first
from mint_operator.placing.table import Policy, Table, Warmth, lacking, warmth
from mint_operator.planning.adapters import Want
from mint_operator.planning.asking import Ask
from mint_operator.planning.engines import Engine
from mint_operator.planning.shards import Shards, differing, flat, shards
from mint_operator.planning.sizes import Size

POLICIES: tuple[Policy, ...] = (leave_lost, pack, put_first, spread_hot)


class Task(msgspec.Struct, frozen=True):
    """The input of a placement. `existing` is what the map says now.

    `turns` gives each admitted wave's turn, `listed` the adapters that it names, `demand` the number of requests in
    flight for each adapter.
    """

    engines: Sequence[Engine]
    limits: Limits
    wants: Mapping[str, Want]
    existing: Mapping[str, Placement]
    sizes: Mapping[str, Size]
    turns: Mapping[str, int]
    listed: Mapping[str, Ask]
    reserved: Mapping[str, int]  # engine -> slots of policies that train there
    demand: Mapping[str, float]

    def in_turn(self, names: Collection[str]) -> list[str]:
        """Return adapters in the order of their most urgent waves, and within a wave as it lists them."""
        wants, turns = self.wants, self.turns
        waves: Iterable[str] = turns
        if len(names) < len(turns):
            asking = {wave for name in names for wave in wants[name].waves}
            waves = sorted(asking & turns.keys(), key=turns.__getitem__)
        ordered: dict[str, None] = {}
        for wave in waves:
            ordered.update(dict.fromkeys([name for name in self.listed[wave].by_name if name in names]))
        rest = names - ordered.keys() if len(ordered) < len(names) else ()
        return [*ordered, *sorted(rest)]

    def same_floor(self, other: "Task") -> bool:
        """Whether everything that all adapters' places depend on is the same: engines, limits, reserved slots."""
        same = self.engines is other.engines or self._engines() == other._engines()
        return same and self.limits == other.limits and self.reserved == other.reserved

    def _engines(self) -> object:
        return [
            (engine.name, engine.lost, engine.leaving, engine.failing, engine.training_bytes)
            for engine in self.engines
        ]


class Placed(msgspec.Struct, frozen=True):
    """A placement, with what the next one needs to start from it.

    `pending` lack a copy, or have one on an engine that is lost or about to be removed. `changed` are the adapters
    that were reconsidered, while all others stayed as they were; None: it was computed from scratch.
    """

    task: Task
    records: Mapping[str, Placement]
    loads: Mapping[str, Load]
    given: Copies
    pending: frozenset[str]
    changed: frozenset[str] | None


def place(task: Task, before: Placed | None) -> Placed:
    """Return the places of every want; fewer than asked for only if there are too few engines."""
    if before is None or not task.same_floor(before.task):
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
    return msgspec.structs.replace(_finish(task, board, kept, {}, None), task=whole)


def _changed(task: Task, before: Placed) -> set[str]:
    """Return the adapters whose places may change."""
    names = set(before.pending)
    names |= differing(task.wants, before.task.wants)
    names |= differing(task.existing, before.records)
    names |= {name for name in differing(task.sizes, before.task.sizes) if name in before.records}
    return names.union(hot(task.demand, task.wants), hot(before.task.demand, before.task.wants))


def _keep(board: Board, task: Task, names: Iterable[str]) -> dict[str, list[Place]]:
    """Return the places that stay, whether or not engines can hold them."""
    kept, crowd = dict[str, list[Place]](), dict[str, Want]()
    wants, existing = task.wants, task.existing
    for name in names:
        want = wants.get(name)
        if want is None:
            continue
        record = existing.get(name)
        if record is None:
            kept[name] = []
        elif len(record.places) > want.replicas or (
            board.any_leaving and any(board.leaving(place.engine) for place in record.places)
        ):
            crowd[name] = want
        else:
            kept[name] = keep(board, want, record.places, {})
    known = warmth(task.engines, crowd, crowd.keys()) if crowd else {}
    for name, want in crowd.items():
        kept[name] = keep(board, want, _existing(task, name), known.get(name, {}), task.demand.get(name, 0.0))
    return kept


def _keep_within(board: Board, task: Task) -> dict[str, list[Place]]:
    kept: dict[str, list[Place]] = {name: [] for name in task.in_turn(set(task.wants))}
    known = warmth(task.engines, task.wants, task.wants.keys())
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
    names: Collection[str] | None,
) -> Placed:
    """Run the policies on the adapters that lack a good copy. `names` are those considered; None: all."""
    needy = task.in_turn(_lacking(board, task, kept, kept))
    if task.demand:
        needy.sort(key=lambda name: -task.demand.get(name, 0.0))  # what is in demand now comes first
    asked = hot(task.demand, task.wants)
    known: Warmth = warmth(task.engines, task.wants, {*needy, *asked}) if needy or asked else {}
    lowest = min((task.listed[wave].spec.priority for wave in task.turns), default=0)
    table = Table(board, task.wants, needy, kept, settled, known, task.demand, asked, lowest)
    for policy in POLICIES:
        policy(table)
    placed = table.placed
    return Placed(
        task=task,
        records=_merged(task, settled, placed, names or ()),
        loads=board.loads,
        given=board.given,
        pending=frozenset(_lacking(board, task, placed, table.needy)),
        changed=None if names is None else frozenset(names) | placed.keys(),
    )


def _lacking(board: Board, task: Task, kept: Mapping[str, Sequence[Place]], names: Iterable[str]) -> set[str]:
    """Return those of `names` that lack a good copy."""
    wants = task.wants
    if not board.any_lost and not board.any_leaving:
        return {name for name in names if len(kept[name]) < wants[name].replicas}
    return {name for name in names if _lacks(board, wants[name], kept[name])}


def _lacks(board: Board, want: Want, places: Sequence[Place]) -> bool:
    if lacking(board, want, places) > 0:
        return True
    return any(board.lost(place.engine) or board.leaving(place.engine) for place in places)


def _merged(
    task: Task, settled: Mapping[str, Placement], placed: Mapping[str, Sequence[Place]], names: Iterable[str]
) -> Shards[Placement]:
    """Return the map's records; one that the map already has stays the same object."""
    made, wants, existing = {}, task.wants, task.existing
    for name, places in placed.items():
        want, known = wants[name], existing.get(name)
        record = Placement(name, want.source, want.waves, tuple(places), want.priority)
        made[name] = record if known is None or known != record else known
    return shards(settled).changed(made, [name for name in names if name not in placed]) if settled else Shards(made)


def adopted(engines: Sequence[Engine], wants: Mapping[str, Want]) -> dict[str, Placement]:
    """Return where engines already hold what is wanted; stands in for the existing places after the map was lost."""
    found, wants = {}, flat(wants)
    why = "held here when the placement map was lost"
    for name, holders in warmth(engines, wants, wants.keys()).items():
        want = wants[name]
        enough = sorted(engine for engine, held in holders.items() if held >= want.residency.warmth)
        if enough:
            places = tuple(Place(engine=engine, residency=want.residency, why=why) for engine in enough)
            found[name] = Placement(name, want.source, want.waves, places, want.priority)
    return found

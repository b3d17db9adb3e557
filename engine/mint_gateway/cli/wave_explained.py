"""The output of `mint wave explain`: what a wave asks for, what was decided, where it is, and what is missing."""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mint_contracts.escaping import escape_controls
from mint_contracts.placement_pb2 import WaveExplanation
from mint_gateway.cli.showing import cell, table


def wave_explained(found: WaveExplanation) -> Group:
    """Return lines of facts, then tables of namespaces, engines and missing copies, if there are any."""
    lines = Text(escape_controls(f"wave {found.wave} on {found.base_model}\n"))
    for label, fact in _facts(found):
        lines.append(escape_controls(f"  {label:<13}{fact}\n"))
    tables = [table for table in (_namespaces(found), _engines(found), _missing(found)) if table.row_count]
    return Group(lines, *tables)


def _facts(found: WaveExplanation) -> list[tuple[str, str]]:
    has, where = found.capacity, ", ".join(found.allowed_engines) or "any engine"
    asks = f"{found.adapters} adapters by {found.chosen_by} x {found.replicas} on {found.residency}"
    limits = f"{has.engines} of {has.engines_max} engines x {has.slots_per_engine} slots"
    facts = [
        ("asks for", f"{asks} = {found.slots} device slots, priority {found.priority}, {where}"),
        ("decided by", found.decided_by),
        ("capacity", f"{has.slots_held} of {has.slots_max} slots held by {has.waves_admitted} waves; {limits}"),
    ]
    if found.position:
        facts.append(("queue", f"position {found.position} of {found.queue}"))
    if found.admitted:
        facts.append(("copies", f"{found.wanted} wanted, {found.placed} placed, {found.ready} ready"))
    return [*facts, ("map version", str(found.map_version))]


def _namespaces(found: WaveExplanation) -> Table:
    shown = table("namespace", "weight", "quota", "slots held", "admitted", "waiting", title="who shares the base")
    for each in found.namespaces:
        quota = str(each.quota or "-")
        counts = (str(each.slots_held), str(each.waves_admitted), str(each.waves_waiting))
        shown.add_row(cell(each.namespace), str(each.weight), quota, *counts)
    return shown


def _engines(found: WaveExplanation) -> Table:
    shown = table("engine", "answers", "wanted", "ready", "failed", title="where its copies are")
    for each in found.engines:
        answers = "yes" if each.available else "[red]no[/]"
        shown.add_row(cell(each.engine), answers, str(each.wanted), str(each.ready), str(each.failed))
    return shown


def _missing(found: WaveExplanation) -> Table:
    shown = table("adapter", "engine", "why", title=f"not ready: {len(found.missing)} of {found.missing_count}")
    for each in found.missing:
        shown.add_row(cell(each.adapter), cell(each.engine), cell(each.why))
    return shown

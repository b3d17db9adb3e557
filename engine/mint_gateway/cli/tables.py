"""The command line's rich tables: pure, and usable by other programs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from mint_contracts.catalog_pb2 import CatalogEntry, RefusedLine
from mint_contracts.errors import MintError
from mint_contracts.placement_pb2 import Explanation, Holder
from mint_contracts.training_pb2 import PolicyState
from mint_gateway.answer import Answer
from mint_gateway.cli.showing import cell, table

REVISION_SHOWN = 12  # hex digits of a digest


@dataclass
class Column:
    """One answer of several, growing as it arrives."""

    adapter: str
    index: int | None = None  # among several completions of one request
    text: str = ""
    answer: Answer | None = None
    error: MintError | None = None


def answers_table(columns: Sequence[Column]) -> Table:
    """Return answers side by side, each with its engine below."""
    table = Table(show_lines=False, expand=True)
    for column in columns:
        table.add_column(cell(_head(column)), overflow="fold", ratio=1, footer=_footer(column))
    table.show_footer = any(column.answer for column in columns)
    table.add_row(*(_cell(column) for column in columns))
    return table


def placements_table(placements: Iterable[Explanation]) -> Table:
    """Return a table with one row for each engine that must hold, or holds, an adapter."""
    shown = table("adapter", "waves", "engine", "wanted", "tier", "revision", "why")
    for placement in placements:
        for holder in placement.holders:
            if holder.wanted or holder.residency:
                why = holder.failure or holder.wanted_because or "loaded on demand"
                shown.add_row(
                    cell(placement.adapter),
                    cell(", ".join(placement.waves)),
                    cell(holder.engine),
                    cell(holder.wanted or "-"),
                    _tier(holder),
                    short_revision(holder.revision),
                    cell(why),
                )
    return shown


def policies_table(policies: Iterable[PolicyState]) -> Table:
    """Return a table with one row per policy that is trained by calls."""
    shown = table("policy", "base model", "engine", "steps", "calls")
    for each in policies:
        where = cell(each.base_model), cell(each.engine) or "rests"
        shown.add_row(cell(each.policy), *where, str(each.step), str(each.sequence))
    return shown


def holders_table(explanation: Explanation) -> Table:
    """Return a table with one row for each engine that was considered."""
    shown = table("engine", "address", "answers", "wanted", "tier", "revision", "why")
    for holder in explanation.holders:
        shown.add_row(
            cell(holder.engine),
            cell(holder.address or "-"),
            "yes" if holder.available else "[red]no[/]",
            cell(holder.wanted or "-"),
            _tier(holder),
            short_revision(holder.revision),
            cell(holder.failure or holder.wanted_because),
        )
    return shown


def entries_table(entries: Iterable[CatalogEntry]) -> Table:
    """Return a table with one row for each catalog entry."""
    shown = table("adapter", "revision", "rank", "bytes", "labels", "source")
    for entry in entries:
        labels = " ".join(f"{key}={value}" for key, value in sorted(entry.labels.items()))
        size = f"{entry.bytes:,}" if entry.bytes else "-"
        shown.add_row(
            cell(entry.name),
            short_revision(entry.revision),
            str(entry.rank or "-"),
            size,
            cell(labels or "-"),
            cell(entry.uri),
        )
    return shown


def refusals_table(refusals: Iterable[RefusedLine]) -> Table:
    """Return a table with one row for each line that was not registered."""
    shown = table("line", "reason", "why")
    for refusal in refusals:
        shown.add_row(str(refusal.line), cell(refusal.reason), cell(refusal.message))
    return shown


def short_revision(revision: str) -> str:
    """Return the first digits of a digest, or "-" if there is none."""
    return cell(revision.removeprefix("sha256:")[:REVISION_SHOWN] or "-")


def _tier(holder: Holder) -> str:
    if not holder.available:
        return "[red]away[/]"
    return f"[red]{cell(holder.residency or 'failed')}[/]" if holder.failure else cell(holder.residency or "-")


def _head(column: Column) -> str:
    who = column.adapter or "(bare base)"
    return who if column.index is None else f"{who} #{column.index}"


def _cell(column: Column) -> str:
    if column.error:
        return f"{cell(column.text)}[red]{cell(f'{column.error.reason}: {column.error}')}[/]"
    return cell(column.text)


def _footer(column: Column) -> str:
    if column.answer is None:
        return ""
    return f"[dim]{cell(column.answer.engine)}, {column.answer.completion_tokens} tokens[/]"

"""`mint catalog`: lists, shows, registers and retires adapters in the catalog."""

import argparse
import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mint_contracts.catalog_pb2 import CatalogEntry, RegisterResponse
from mint_contracts.errors import InvalidRequest
from mint_contracts.escaping import escape_controls
from mint_contracts.listing import and_more
from mint_gateway.cli.argument_types import positive
from mint_gateway.cli.gateway_options import reach
from mint_gateway.cli.manifest_file import PARQUET, requests, size_of
from mint_gateway.cli.purpose import purpose
from mint_gateway.cli.showing import console, show, show_json
from mint_gateway.cli.tables import entries_table, refusals_table

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

LIMIT = 100
PAGE = 1000
RETIRED_A_CALL = 10_000
UNKNOWN_SHOWN = 20


def add(verbs: "Verbs", common: argparse.ArgumentParser) -> None:
    """Declare the verb and its actions."""
    verb = verbs.add_parser("catalog", **purpose("adapters in the catalog: list, show, register, retire"))
    acts = verb.add_subparsers(required=True, metavar="WHAT")
    listing = acts.add_parser("list", parents=[common], **purpose("list adapters by name"))
    listing.add_argument("prefix", metavar="PREFIX", nargs="?", default="", help="only names with this prefix")
    label = "only adapters with this label; may be repeated"
    listing.add_argument("-l", "--label", metavar="KEY=VALUE", action="append", default=[], help=label)
    listing.add_argument(
        "--limit", type=positive, default=LIMIT, metavar="N", help="how many to list at most (default %(default)s)"
    )
    listing.set_defaults(run=run_list)
    show = acts.add_parser("show", parents=[common], **purpose("show one adapter"))
    show.add_argument("adapter", metavar="NAME[@REVISION]", help="its name, alone or with a revision")
    show.set_defaults(run=run_show)
    line = 'Its lines are like {"name": "acme/bot", "uri": "s3://bucket/bot", "labels": {"language": "en"}}.'
    register = acts.add_parser("register", parents=[common], **purpose("register every entry of a file", line))
    register.add_argument("file", metavar="FILE", type=Path, help="JSON lines, or Parquet if named *.parquet")
    register.set_defaults(run=run_register)
    then = "A retired name means nothing, even if the adapter store has it, until it is registered again."
    retire = acts.add_parser("retire", parents=[common], **purpose("take names out of the catalog", then))
    retire.add_argument("adapters", metavar="NAME", nargs="+", help="names to retire")
    retire.set_defaults(run=run_retire)


async def run_list(options: argparse.Namespace) -> int:
    """Print adapters, and how many there are in total."""
    labels = dict(_pair(text) for text in options.label)
    found: list[CatalogEntry] = []
    token, total = "", 0
    async with reach(options) as client:
        while len(found) < options.limit:
            size = min(PAGE, options.limit - len(found))
            page = await client.catalog_page(
                options.base, prefix=options.prefix, labels=labels, size=size, token=token
            )
            found += page.entries
            token, total = page.next_page_token, page.total
            if not token:
                break
    if options.output == "json":
        show_json(found)
        return 0
    show(entries_table(found))
    more = "; raise --limit for more" if token else ""
    in_all = f"; the whole catalog has {total:,}" if total else ""
    print(f"{len(found):,} shown{in_all}{more}")
    return 0


async def run_show(options: argparse.Namespace) -> int:
    """Print one adapter's entry."""
    async with reach(options) as client:
        entry = await client.resolve(options.adapter, options.base)
    if options.output == "json":
        show_json(entry)
        return 0
    for line in lines(entry):
        print(escape_controls(line))
    return 0


def lines(entry: CatalogEntry) -> Iterator[str]:
    """Yield one adapter's entry as lines for people."""
    yield entry.name
    yield f"  source    {entry.uri}"
    yield f"  revision  {entry.revision or '-'}"
    yield f"  labels    {', '.join(f'{key}={value}' for key, value in sorted(entry.labels.items())) or '-'}"
    yield f"  rank      {entry.rank or '-'}"
    yield f"  bytes     {f'{entry.bytes:,}' if entry.bytes else '-'}"


async def run_register(options: argparse.Namespace) -> int:
    """Register a file. Return 1 if any line was refused."""
    shown = console(sys.stderr)
    size = await asyncio.to_thread(size_of, options.file)
    async with reach(options) as client:
        with Progress(*columns(options.file), console=shown, disable=not shown.is_terminal) as progress:
            task = progress.add_task(f"registering {options.file.name}", total=size)
            response = await client.register(
                requests(options.file, options.base, lambda read: progress.update(task, completed=read))
            )
    if options.output == "json":
        show_json(response)
    else:
        _print_response(response)
    return 1 if response.refused else 0


def columns(file: Path) -> list[ProgressColumn]:
    """Return what is shown of a file's progress: of Parquet rows are counted, which have no speed in bytes."""
    speed = [] if file.suffix == PARQUET else [TransferSpeedColumn()]
    return [TextColumn("{task.description}", markup=False), BarColumn(), *speed, TimeRemainingColumn()]


async def run_retire(options: argparse.Namespace) -> int:
    """Retire names, and print which of them were unknown, since they may be misspelt."""
    names, unknown = list(dict.fromkeys(options.adapters)), list[str]()
    async with reach(options) as client:
        for at in range(0, len(names), RETIRED_A_CALL):
            unknown += await client.retire(names[at : at + RETIRED_A_CALL], options.base)
    if options.output == "json":
        show_json({"retired": len(names), "unknown": unknown})
        return 0
    print(f"{len(names):,} retired")
    if unknown:
        named = escape_controls(", ".join(unknown[:UNKNOWN_SHOWN])) + and_more(unknown, UNKNOWN_SHOWN)
        print(f"{len(unknown):,} of them were not in the catalog, or were retired already: {named}", file=sys.stderr)
    return 0


def _print_response(response: RegisterResponse) -> None:
    print(f"{response.registered:,} registered, {response.refused:,} refused")
    if response.refused:
        show(refusals_table(response.refusals), sys.stderr)
        if response.refused > len(response.refusals):
            print(f"and {response.refused - len(response.refusals):,} more", file=sys.stderr)


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidRequest(f"label {text!r}", "must have the form KEY=VALUE")
    return key, value

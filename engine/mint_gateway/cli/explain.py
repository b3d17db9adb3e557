"""`mint explain`: where an adapter is and why, and which engine would answer now."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mint_contracts.escaping import escape_controls
from mint_contracts.placement_pb2 import Explanation
from mint_gateway.cli.gateway_options import reach
from mint_gateway.cli.purpose import purpose
from mint_gateway.cli.showing import show, show_json
from mint_gateway.cli.tables import holders_table

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: "Verbs", common: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    verb = verbs.add_parser(
        "explain", parents=[common], **purpose("explain where an adapter is, and which engine would answer now")
    )
    verb.add_argument(
        "adapter", metavar="ADAPTER", nargs="?", default="", help="adapter to explain (default: the bare base)"
    )
    verb.set_defaults(run=run)


async def run(options: argparse.Namespace) -> int:
    """Ask the gateway and print."""
    async with reach(options) as client:
        explanation = await client.explain(options.adapter, options.base)
    if options.output == "json":
        show_json(explanation)
        return 0
    for line in lines(explanation):
        print(escape_controls(line))
    show(holders_table(explanation))
    return 0


def lines(found: Explanation) -> Iterator[str]:
    """Yield the lines above the table of engines."""
    yield f"{found.adapter or 'bare base'} on {found.base_model}"
    if found.adapter:
        yield f"  wanted by    {', '.join(found.waves) or 'no wave: its home engine is computed'}"
        yield f"  source       {found.source_uri}"
    yield f"  goes to      {found.chosen_engine or 'no engine'}: {found.chosen_because}"
    yield f"  map version  {found.map_version}"

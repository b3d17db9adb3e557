"""`mint placements`: the engines, tiers and reasons for every adapter that is placed or held."""

import argparse
from typing import TYPE_CHECKING

from mint_gateway.cli.gateway_options import reach
from mint_gateway.cli.purpose import purpose
from mint_gateway.cli.showing import show, show_json
from mint_gateway.cli.tables import placements_table

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: "Verbs", common: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    verb = verbs.add_parser(
        "placements", parents=[common], **purpose("show the placement map as the gateway sees it")
    )
    verb.set_defaults(run=run)


async def run(options: argparse.Namespace) -> int:
    """Ask the gateway and print."""
    async with reach(options) as client:
        found = await client.placements(options.base)
    if options.output == "json":
        show_json(found)
    else:
        show(placements_table(found))
    return 0

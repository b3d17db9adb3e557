"""`mint explain`: why an adapter is where it is, and who would answer now."""

import argparse
import json
from typing import TYPE_CHECKING

from google.protobuf.json_format import MessageToDict

from mint_gateway.cli.reaching import reach
from mint_gateway.cli.showing import show
from mint_gateway.cli.tables import holders_table

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: "Verbs", common: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    verb = verbs.add_parser("explain", parents=[common], help="why is this adapter there, and who would answer now?")
    verb.add_argument("adapter", metavar="ADAPTER", nargs="?", default="", help="none: the bare base")
    verb.set_defaults(run=run)


async def run(options: argparse.Namespace) -> int:
    """Ask the gateway and print."""
    async with reach(options) as client:
        explanation = await client.explain(options.adapter, options.base)
    if options.output == "json":
        print(json.dumps(MessageToDict(explanation, preserving_proto_field_name=True), indent=2))
        return 0
    print(f"{explanation.adapter or 'bare base'} on {explanation.base_model}")
    if explanation.adapter:
        print(f"  wanted by    {', '.join(explanation.waves) or 'no wave: its home engine is computed'}")
        print(f"  source       {explanation.source_uri}")
    print(f"  goes to      {explanation.chosen_engine or 'nobody'}: {explanation.chosen_because}")
    print(f"  map version  {explanation.map_version}")
    show(holders_table(explanation))
    return 0

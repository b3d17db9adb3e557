"""`mint policies`: what programs train by Trainer calls, where it is and how far it has come."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from google.protobuf.json_format import MessageToDict
from rich.console import Console

from mint_gateway.cli.reaching import reach
from mint_gateway.cli.tables import policies_table

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: "Verbs", common: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    verb = verbs.add_parser("policies", parents=[common], help="what programs train by calls, and how far it is")
    verb.set_defaults(run=run)


async def run(options: argparse.Namespace) -> int:
    """Ask the gateway and print; 1 where an engine did not answer, which may have more."""
    async with reach(options) as client:
        found = await client.policies(options.base)
    if options.output == "json":
        print(json.dumps(MessageToDict(found, preserving_proto_field_name=True), indent=2))
    else:
        Console(highlight=False).print(policies_table(found.policies))
    if found.silent:
        print(f"engines that may have more, and did not answer: {', '.join(found.silent)}", file=sys.stderr)
    return 1 if found.silent else 0

"""`mint policy`: lists and drops the policies that programs train by Trainer calls."""

import argparse
import sys
from typing import TYPE_CHECKING

from mint_contracts.errors import PolicyNotFound
from mint_contracts.escaping import escape_controls
from mint_gateway.cli.error_report import report_error
from mint_gateway.cli.gateway_options import reach
from mint_gateway.cli.purpose import purpose
from mint_gateway.cli.showing import show, show_json
from mint_gateway.cli.tables import policies_table

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

UNKNOWN = "does not exist, so it was not dropped; `mint policy list` lists the policies that do"


def add(verbs: "Verbs", common: argparse.ArgumentParser) -> None:
    """Declare the verb and its actions."""
    verb = verbs.add_parser("policy", **purpose("policies that programs train by Trainer calls: list, drop"))
    acts = verb.add_subparsers(required=True, metavar="WHAT")
    listing = acts.add_parser(
        "list", parents=[common], **purpose("list them: the engine of each, or that it rests, and its steps so far")
    )
    listing.set_defaults(run=run_list)
    drop = acts.add_parser(
        "drop", parents=[common], **purpose("drop policies and free their names; their files stay in the store")
    )
    drop.add_argument("policies", metavar="NAME", nargs="+", help="policies to drop")
    drop.set_defaults(run=run_drop)


async def run_list(options: argparse.Namespace) -> int:
    """Ask the gateway and print. Return 1 if an engine that may have more did not answer."""
    async with reach(options) as client:
        found, resting = await client.policies(options.base), await client.resting_policies(options.base)
    found.policies.extend(resting.policies)
    found.silent.extend(name for name in resting.silent if name not in found.silent)
    if options.output == "json":
        show_json(found)
    else:
        show(policies_table(found.policies))
    if found.silent:
        line = f"engines that did not answer, and may have more: {', '.join(found.silent)}"
        print(escape_controls(line), file=sys.stderr)
    return 1 if found.silent else 0


async def run_drop(options: argparse.Namespace) -> int:
    """Drop each policy, also one whose engine has ended: its published name then means nothing any more.

    Return 1 if any does not exist; the others are dropped.
    """
    dropped, unknown = list[str](), list[str]()
    async with reach(options) as client:
        try:
            for name in options.policies:
                if not await client.drop_policy(name, base_model=options.base):
                    unknown.append(name)
                    report_error(PolicyNotFound(f"policy {name!r}", UNKNOWN), options)
                    continue
                dropped.append(name)
                if options.output != "json":
                    print(f"dropped {name}")
        finally:  # print also those dropped before a failure
            if options.output == "json":
                show_json({"dropped": dropped, "unknown": unknown})
    return 1 if unknown else 0

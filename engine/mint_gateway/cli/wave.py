"""`mint wave list|watch|explain|plot`: shows waves, explains their state, and follows and plots training.

`wave_orders` has the verbs that change a wave.
"""

import argparse
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from mint_contracts.training_pb2 import WaveProgress
from mint_gateway.as_json import as_json
from mint_gateway.cli import wave_orders
from mint_gateway.cli.gateway_options import reach
from mint_gateway.cli.purpose import purpose
from mint_gateway.cli.showing import console, show, show_json
from mint_gateway.cli.wave_explained import wave_explained
from mint_gateway.cli.wave_plot import plot
from mint_gateway.cli.wave_tables import failures, line, progress_table, waves_table

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]

AROUND = 6  # lines around the rows of policies

_FINE = {"Complete", "Cancelled"}  # phases after which `watch` exits with 0


def add(verbs: "Verbs", common: argparse.ArgumentParser, reaching: argparse.ArgumentParser) -> None:
    """Declare the verb and its own verbs. For `plot`, `-o` names the output file, not the format."""
    verb = verbs.add_parser(
        "wave", **purpose("list, watch and explain waves; pause, resume or cancel training; plot rewards")
    )
    own = verb.add_subparsers(required=True, metavar="VERB")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("wave", metavar="[NS/]NAME", help="the AdapterWave")
    named.add_argument(
        "-n", "--namespace", default="default", help="namespace, if NAME has none (default %(default)s)"
    )
    listing = own.add_parser("list", parents=[common], **purpose("list the training waves"))
    listing.set_defaults(run=list_waves)
    watching = own.add_parser(
        "watch", parents=[common, named], **purpose("show progress and rewards as they come, until the wave ends")
    )
    watching.set_defaults(run=watch)
    explaining = own.add_parser(
        "explain", parents=[common, named], **purpose("explain the state of a wave, and what is missing")
    )
    explaining.set_defaults(run=explain)
    drawing = own.add_parser("plot", parents=[reaching, named], **purpose("plot the rewards so far"))
    drawing.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="rewards.png",
        help="output file; the extension chooses the format (default %(default)s)",
    )
    drawing.set_defaults(run=draw)
    wave_orders.add(own)


async def list_waves(options: argparse.Namespace) -> int:
    """Ask the gateway and print."""
    async with reach(options) as client:
        found = await client.waves(options.base)
    if options.output == "json":
        show_json(found)
    else:
        show(waves_table(found))
    return 0


async def watch(options: argparse.Namespace) -> int:
    """Show progress until the wave has ended. Return 1 if it failed."""
    last = WaveProgress()
    async with reach(options) as client:
        updates = client.watch(_name(options), history=True)
        shown = console()
        if options.output == "json":
            async for last in updates:
                print(json.dumps(as_json(last)), flush=True)
        else:
            last = await (_live(shown, updates) if shown.is_terminal else _lines(updates))
    return 0 if last.phase in _FINE else 1


async def explain(options: argparse.Namespace) -> int:
    """Ask the gateway and print."""
    async with reach(options) as client:
        found = await client.explain_wave(_name(options))
    if options.output == "json":
        show_json(found)
    else:
        show(wave_explained(found))
    return 0


async def draw(options: argparse.Namespace) -> int:
    """Write a plot of a wave's rewards so far."""
    async with reach(options) as client:
        updates = client.watch(_name(options), history=True, curves=True)
        progress = await anext(updates)
        await updates.aclose()
    steps = plot(progress, Path(options.output))
    print(f"{options.output}: {len(progress.policies)} policies, {steps} steps", file=sys.stderr)
    return 0


async def _lines(updates: AsyncIterator[WaveProgress]) -> WaveProgress:
    """Print a line for each update, and one for each policy once it has failed."""
    last, told = WaveProgress(), dict[str, str]()
    async for last in updates:
        failed = failures(last)
        new = [text for name, text in failed.items() if told.get(name) != text]
        print(line(last), *new, sep="\n", flush=True)
        told = failed
    return last


async def _live(shown: Console, updates: AsyncIterator[WaveProgress]) -> WaveProgress:
    """Show the policies that fit the screen, which cannot scroll meanwhile, and all of them once it ends."""
    last = WaveProgress()
    with Live(console=shown, refresh_per_second=4) as live:
        try:
            async for last in updates:
                live.update(progress_table(last, shown, max(1, shown.height - AROUND)))
        finally:
            if last.policies:
                live.update(progress_table(last, shown))
    return last


def _name(options: argparse.Namespace) -> str:
    name: str = options.wave
    return name if "/" in name else f"{options.namespace}/{name}"

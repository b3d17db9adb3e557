"""The `mint` command line: one module per verb."""

import argparse
import asyncio
import io
import os
import sys
from collections.abc import Sequence

from mint_contracts.errors import InvalidRequest, MintError
from mint_contracts.storage_errors import volume_full
from mint_gateway.cli import ask, catalog, explain, gateway_options, placements, plan, policy, wave
from mint_gateway.cli.error_report import report_error


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb. A MintError becomes one line on stderr and exit code 1."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # if it is not UTF-8, for example in a pipe on Windows
    try:
        code: int = asyncio.run(options.run(options))
        print(end="", flush=True)  # raises now if it cannot be written, not at exit
    except MintError as error:
        report_error(error, options)
        code = 1
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":
            raise
        # An argument was not valid text: Python represents its bytes by surrogates, which cannot be encoded.
        report_error(
            InvalidRequest("command line", f"holds {error.object[:100]!r}, which is not valid UTF-8"), options
        )
        code = 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # the reader of our output has closed it
        _write_no_more()
        code = 1
    except OSError as error:
        full = volume_full(error, "standard output")
        if full is None:
            raise
        _write_no_more()
        report_error(full, options)
        code = 1
    sys.exit(code)


def _write_no_more() -> None:
    """Discard what stdout still buffers when the program ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the complete command line."""
    root = argparse.ArgumentParser(prog="mint", description="Query, inspect and train LoRA adapters served by MinT.")
    way = gateway_options.options()
    common = argparse.ArgumentParser(add_help=False, parents=[way])
    common.add_argument(
        "-o", "--output", choices=("text", "json"), default="text", help="how to print (default %(default)s)"
    )
    verbs = root.add_subparsers(required=True, metavar="VERB")
    for verb in (ask, catalog, explain, placements, policy):
        verb.add(verbs, common)
    plan.add(verbs)
    wave.add(verbs, common, way)
    return root

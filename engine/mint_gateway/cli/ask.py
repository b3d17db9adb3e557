"""`mint ask`: streams one answer, or shows several side by side."""

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
from rich.live import Live

from mint_contracts.errors import MintError
from mint_contracts.escaping import escape_controls
from mint_contracts.sampling_pb2 import GenerateEvent, GenerateRequest
from mint_gateway.answer import Answer, collect
from mint_gateway.cli.error_report import report_error
from mint_gateway.cli.gateway_options import reach
from mint_gateway.cli.purpose import purpose
from mint_gateway.cli.showing import console
from mint_gateway.cli.tables import Column, answers_table
from mint_gateway.client import Client, question

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


_IN_JSON = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}  # control characters that JSON allows unescaped


def add(verbs: "Verbs", common: argparse.ArgumentParser) -> None:
    """Declare the verb."""
    verb = verbs.add_parser("ask", parents=[common], **purpose("ask one adapter, several at once, or the bare base"))
    verb.add_argument("prompt", metavar="PROMPT", help="what to ask, as a user's message in a chat")
    verb.add_argument(
        "--adapter",
        metavar="NAME",
        action="append",
        default=[],
        help="adapter to ask; may be repeated (default: the bare base)",
    )
    verb.add_argument("--bare", action="store_true", help="ask the bare base too, alongside the adapters")
    verb.add_argument(
        "--max-tokens",
        type=natural,
        default=0,
        metavar="N",
        help="new tokens at most (default: the engine's, 256)",
    )
    verb.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="sampling temperature; 0: greedy (default %(default)g)",
    )
    verb.add_argument(
        "--seed", type=natural, metavar="N", help="sampling seed, for the same tokens again (default: random)"
    )
    verb.add_argument(
        "-n",
        type=natural,
        default=1,
        metavar="N",
        help="completions of each, drawn with SEED, SEED+1 and so on (default %(default)s)",
    )
    verb.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated"
    )
    verb.add_argument("--raw", action="store_true", help="send the prompt as it is, without the chat template")
    verb.set_defaults(run=run)


def natural(text: str) -> int:
    """Parse a count for argparse, within the range of a gRPC int32."""
    number = int(text)
    if not 0 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {2**31 - 1}")
    return number


async def run(options: argparse.Namespace) -> int:
    """Ask, print, and return the exit code: 1 if any answer failed."""
    adapters = list(dict.fromkeys(options.adapter))
    if options.bare or not adapters:
        adapters.append("")
    requests = [_request(options, adapter) for adapter in adapters]
    async with reach(options) as client:
        if len(requests) == 1 and options.n <= 1 and options.output == "text":
            await _stream(client, requests[0])
            return 0
        groups = [_columns(adapter, options.n) for adapter in adapters]
        columns = [column for group in groups for column in group]
        await _ask_all(client, requests, groups, live=options.output == "text")
    if options.output == "json":
        plain = getattr(sys.stdout, "encoding", "") != "utf-8"
        document = json.dumps([_as_dict(column) for column in columns], indent=2, ensure_ascii=plain)
        print(document.translate(_IN_JSON))
    errors = list(dict.fromkeys(column.error for column in columns if column.error))
    for error in errors:
        report_error(error, options)
    return 1 if errors else 0


async def _stream(client: Client, request: GenerateRequest) -> None:
    """Print one answer as it arrives; on a terminal, control characters are made visible."""
    events, shown, begun = [], escape_controls if sys.stdout.isatty() else str, False
    try:
        async for event in client.ask(request):
            events.append(event)
            if event.HasField("chunk"):
                begun = True
                print(shown(event.chunk.text), end="", flush=True)
    except MintError:
        if begun:
            print(flush=True)  # the error gets a line of its own
        raise
    print()
    if sys.stderr.isatty():
        [answer] = collect(events)
        who = answer.adapter or f"bare {answer.base_model}"
        print(escape_controls(f"[{who} on {answer.engine}, {answer.completion_tokens} tokens]"), file=sys.stderr)


def _columns(adapter: str, count: int) -> list[Column]:
    """Return one column for each requested completion."""
    return [Column(adapter)] if count <= 1 else [Column(adapter, index) for index in range(count)]


async def _ask_all(
    client: Client, requests: list[GenerateRequest], groups: list[list[Column]], *, live: bool
) -> None:
    shown, columns = console(), [column for group in groups for column in group]

    async def fill(request: GenerateRequest, group: list[Column]) -> None:
        try:
            answers = collect([event async for event in _typed(client.ask(request), group)])
            for column, answer in zip(group, answers, strict=True):
                column.answer = answer
        except MintError as error:
            for column in group:
                column.error = error

    asking = asyncio.gather(*(fill(request, group) for request, group in zip(requests, groups, strict=True)))
    if live and shown.is_terminal:
        with Live(get_renderable=lambda: answers_table(columns), console=shown, refresh_per_second=12):
            await asking
    else:
        await asking
        if live:
            shown.print(answers_table(columns))


async def _typed(events: AsyncIterator[GenerateEvent], group: list[Column]) -> AsyncIterator[GenerateEvent]:
    """Yield the events, adding their text to the columns of their completions."""
    async for event in events:
        group[event.chunk.index].text += event.chunk.text
        yield event


def _request(options: argparse.Namespace, adapter: str) -> GenerateRequest:
    return question(
        options.prompt,
        base_model=options.base,
        adapter=adapter,
        raw=options.raw,
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        stop=options.stop,
        n=options.n,
    )


def _as_dict(column: Column) -> dict[str, object]:
    if column.error:
        return {"adapter": column.adapter, "error": {"reason": column.error.reason, "message": str(column.error)}}
    answer: Answer | None = column.answer
    return {} if answer is None else dict(msgspec.to_builtins(answer))

"""Untrusted text cannot control the terminal, however `mint` shows it."""

import argparse
import asyncio
import io
import os
import sys
from contextlib import suppress
from typing import Any, TypeVar
from unicodedata import category

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from rich.console import Console, RenderableType

from mint_contracts.catalog_pb2 import CatalogEntry, RefusedLine
from mint_contracts.errors import BadReward
from mint_contracts.escaping import escape_controls
from mint_contracts.placement_pb2 import Explanation, WaveExplanation
from mint_contracts.training_pb2 import PolicyState, WaveProgress
from mint_gateway.answer import Answer
from mint_gateway.cli import catalog, explain, tables, wave_tables
from mint_gateway.cli.error_report import report_error
from mint_gateway.cli.showing import LONG, console, show
from mint_gateway.cli.wave_explained import wave_explained
from tests.gateway.command import mint
from tests.gateway.scene import Scene

ORDERS = "\x1b]0;OWNED\x07\x1b[2J\x9b31m[red]\r"
WRITTEN_OUT = "\\x1b]0;OWNED\\x07\\x1b[2J\\x9b31m[red]\\x0d"

M = TypeVar("M", bound=Message)


def hostile(kind: type[M]) -> M:
    """Return a message whose texts are all control sequences, with one element in each list."""

    def like(descriptor: Any) -> dict[str, Any]:
        if descriptor.GetOptions().map_entry:
            return {ORDERS: ORDERS}
        parts = {each.name: like(each.message_type) for each in descriptor.fields if each.message_type}
        texts = {each.name: ORDERS for each in descriptor.fields if each.type == FieldDescriptor.TYPE_STRING}
        lists = {each.name for each in descriptor.fields if each.is_repeated and not _is_map(each)}
        return {name: [value] if name in lists else value for name, value in (parts | texts).items()}

    return ParseDict(like(kind.DESCRIPTOR), kind())


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def drawn(what: RenderableType) -> str:
    """Return what a console that adds no control sequences prints for it."""
    file = io.StringIO()
    Console(file=file, width=1000, highlight=False).print(what)
    return file.getvalue()


def test_orders_are_written_out_and_all_else_is_as_it_was() -> None:
    assert escape_controls(ORDERS) == WRITTEN_OUT
    assert escape_controls("\x00\x7f\x85") == "\\x00\\x7f\\x85"
    text = "Où est 🌊?\n\tc:\\x1b\u00a0"
    assert escape_controls(text) == text


ANSWER = Answer(ORDERS, (), (), "STOP", ORDERS, ORDERS, ORDERS, ORDERS, 1, 1)
SHOWN: list[tuple[str, RenderableType]] = [
    ("answers", tables.answers_table([tables.Column(ORDERS, text=ORDERS, answer=ANSWER)])),
    ("failed answers", tables.answers_table([tables.Column(ORDERS, error=BadReward(ORDERS, ORDERS))])),
    ("placements", tables.placements_table([hostile(Explanation)])),
    ("policies", tables.policies_table([hostile(PolicyState)])),
    ("holders", tables.holders_table(hostile(Explanation))),
    ("entries", tables.entries_table([hostile(CatalogEntry)])),
    ("refusals", tables.refusals_table([hostile(RefusedLine)])),
    ("waves", wave_tables.waves_table([hostile(WaveProgress)])),
    ("progress", wave_tables.progress_table(hostile(WaveProgress), Console(width=1000, file=io.StringIO()))),
    ("a wave explained", wave_explained(hostile(WaveExplanation))),
]


@pytest.mark.parametrize(("name", "what"), SHOWN)
def test_a_table_gives_no_orders_and_takes_none_as_markup(name: str, what: RenderableType) -> None:
    text = drawn(what)
    assert {each for each in text if category(each) == "Cc"} == {"\n"}, name
    assert "[red]" in text


def test_a_text_like_the_name_of_an_emoji_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show(tables.answers_table([tables.Column("", text="ports 80:100:443 :bug:")]))
    show(wave_tables.progress_table(WaveProgress(wave="demo/w", message="at 80:100:443 :bug:"), console()))
    assert capsys.readouterr().out.count("80:100:443 :bug:") == 2


def test_a_long_table_has_a_line_for_each_row_and_gives_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    entries = [CatalogEntry(name=f"acme/{n}", uri=f"s3://b/{n}") for n in range(LONG)]
    show(tables.entries_table(entries))
    assert "│ acme/0 " in capsys.readouterr().out
    odd = CatalogEntry(name="acme/[red]:bug:", uri=f"s3://日本/{ORDERS}\n", rank=4)
    show(tables.entries_table([odd, *entries]))
    heads, first, *others = capsys.readouterr().out.splitlines()
    assert heads.split() == ["adapter", "revision", "rank", "bytes", "labels", "source"]
    assert first.split() == ["acme/[red]:bug:", "-", "4", "-", "-", f"s3://日本/{WRITTEN_OUT}"]
    assert [line.split()[0] for line in others] == [entry.name for entry in entries]
    assert {line.index("s3://") for line in (first, *others)} == {heads.index("source")}


def test_lines_of_waves_and_lookups_give_a_terminal_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    for line in (wave_tables.line(hostile(WaveProgress)), *map(escape_controls, explain.lines(hostile(Explanation)))):
        assert line.isprintable()
    assert WRITTEN_OUT in wave_tables.line(hostile(WaveProgress))
    assert WRITTEN_OUT in "".join(map(escape_controls, catalog.lines(hostile(CatalogEntry))))
    report_error(BadReward("reward service", ORDERS), argparse.Namespace())
    assert capsys.readouterr().err == f"mint: BadReward: reward service: {WRITTEN_OUT}\n"


async def test_an_answer_is_as_it_came_in_a_pipe_and_gives_a_terminal_no_orders(scene: Scene) -> None:
    engine = await scene.with_engine()
    engine.words = (ORDERS, "\tand on\n")
    assert await mint(scene.target, "ask", "Hello?") == (0, f"{ORDERS}\tand on\n\n", "")
    assert await on_a_terminal(scene, "ask", "Hello?") == f"{WRITTEN_OUT}\tand on\n\n"
    assert "\\u009b31m" in await on_a_terminal(scene, "ask", "-o", "json", "Hello?")


async def on_a_terminal(scene: Scene, *arguments: str) -> str:
    """Return what `mint` prints on a terminal."""
    terminal, shown = os.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from mint_gateway.cli import main; main()", *arguments),
        env={"MINT_GATEWAY": scene.target, "TERM": "xterm", "PYTHONUTF8": "1"},
        stdout=shown,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(shown)
    try:
        _, err = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, err) == (0, b"")
        return _left_in(terminal).decode().replace("\r\n", "\n")
    finally:
        os.close(terminal)


def _left_in(terminal: int) -> bytes:
    """Return all that was written to a terminal whose programs have ended; it fits the terminal's buffer."""
    found = b""
    with suppress(OSError):  # the end, which comes only after all that the kernel has yet to pass on
        while piece := os.read(terminal, 1 << 16):
            found += piece
    return found

"""Printing tables and JSON. Names are never cut, so that they can be copied and searched for.

On a narrow terminal they wrap; in a pipe or a file each row is one line, however long. A table of many rows is always
printed as plain lines: rich measures and wraps each cell, which takes seconds for thousands of rows.
"""

import json
from collections.abc import Iterator
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.markup import escape, render
from rich.measure import Measurement
from rich.table import Column, Table

from mint_contracts.escaping import escape_controls
from mint_gateway.as_json import as_json

LONG = 1000  # rows
_ANY_WIDTH = 1 << 20


def table(*heads: str, title: str | None = None) -> Table:
    """Return an empty table with these column heads."""
    return Table(*(Column(head, overflow="fold") for head in heads), title=title)


def cell(text: str) -> str:
    """Escape untrusted text for a rich table: no markup, and no control sequences for the terminal."""
    return escape(escape_controls(text))


def console(file: TextIO | None = None) -> Console:
    """Return a console that shows text as it is: rich's default colours numbers and replaces :bug: by an emoji."""
    return Console(file=file, highlight=False, emoji=False)


def show(what: RenderableType, file: TextIO | None = None) -> None:
    """Print to stdout, or to `file`."""
    shown = console(file)
    if isinstance(what, Table) and what.row_count > LONG:
        for line in aligned(what):
            print(line, file=shown.file)
        return
    if not shown.is_terminal:
        shown.width = max(shown.width, whole_width(what, shown))
    shown.print(what)


def aligned(long: Table) -> Iterator[str]:
    """Yield the heads and rows of a table, each as a line."""
    columns = [[_plain(each) for each in (column.header, *column.cells)] for column in long.columns]
    widths = [max(map(cell_len, column)) for column in columns]
    for row in zip(*columns, strict=True):
        texts = (text + " " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True))
        yield "  ".join(texts).rstrip()


def _plain(shown: RenderableType) -> str:
    text = render(shown, emoji=False).plain if isinstance(shown, str) else str(shown)
    return " ".join(text.split())


def show_json(what: object) -> None:
    """Print to stdout as JSON for programs; it may hold messages."""
    print(json.dumps(what, indent=2, default=as_json))


def whole_width(what: RenderableType, console: Console) -> int:
    """Return the line width that it needs so that nothing is folded."""
    return Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), what).maximum

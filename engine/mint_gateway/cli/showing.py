"""Tables as they are written: names are there to be copied, and searched for, so that none is cut.

Where a terminal is too narrow they go on in the next line; in a pipe or a file each row is a line, however long.
"""

from typing import TextIO

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Column, Table

from mint_contracts.legible import legible

_ANY_WIDTH = 1 << 20


def table(*heads: str, title: str | None = None) -> Table:
    """An empty one with columns of those heads."""
    return Table(*(Column(head, overflow="fold") for head in heads), title=title)


def cell(text: str) -> str:
    """Others' words as rich takes them in a table: no markup, and no orders to the terminal."""
    return escape(legible(text))


def show(what: RenderableType, file: TextIO | None = None) -> None:
    """Write it to stdout, or to that file."""
    console = Console(highlight=False, file=file)
    if not console.is_terminal:
        console.width = max(console.width, whole_width(what, console))
    console.print(what)


def whole_width(what: RenderableType, console: Console) -> int:
    """The characters of a line that it takes where nothing of it is to be folded."""
    return Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), what).maximum

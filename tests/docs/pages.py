"""The documentation's pages, parsed: parts, tables, code blocks, and text between backticks."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.apiserver import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "charts" / "mint" / "README.md",
    ROOT / "e2e" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SAMPLES = sorted((ROOT / "crds" / "samples").glob("*.yaml"))


def name(page: Path) -> str:
    """Return the name of a page in test ids."""
    return str(page.relative_to(ROOT))


def parts(text: str) -> dict[str, str]:
    """Return what is below each heading of a page's text, up to the next."""
    return dict(re.findall(r"^#+ (.*)\n((?:(?!#).*\n)*)", text, re.MULTILINE))


def rows(text: str) -> list[list[str]]:
    """Return the rows of a table below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def blocks(page: Path) -> Iterator[str]:
    """Return a page's code blocks: runs of lines indented by four, without that indent."""
    for found in re.findall(r"(?:\A|\n)\n((?: {4}.*\n|\n(?= {4}))+)", page.read_text() + "\n"):
        yield re.sub(r"^ {4}", "", found, flags=re.MULTILINE)


def spans(page: Path) -> list[str]:
    """Return the text between backticks, joined to one line where it is wrapped."""
    prose = re.sub(r"^ {4,}.*$", "", page.read_text(), flags=re.MULTILINE)
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]


def commands(page: Path) -> Iterator[str]:
    """Return the command lines of a page's code, without comments and with continued lines joined.

    For a sample, return the command lines in its comments."""
    if page.suffix == ".yaml":
        lines = re.findall(r"^#   (.*)$", page.read_text(), re.MULTILINE)
    else:
        lines = "".join(blocks(page)).replace("\\\n", " ").splitlines()
    for line in lines:
        yield re.split(r"\s+#\s|\s&$", line, maxsplit=1)[0]

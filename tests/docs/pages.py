"""The pages that people read, taken apart: their code blocks, and what stands in them between backticks."""

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
    """A page as a test names it."""
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[str]:
    """Its code: runs of lines that are indented by four, without that indent."""
    for found in re.findall(r"(?:\A|\n)\n((?: {4}.*\n|\n(?= {4}))+)", page.read_text() + "\n"):
        yield re.sub(r"^ {4}", "", found, flags=re.MULTILINE)


def spans(page: Path) -> list[str]:
    """What stands between backticks, on one line each though it may be wrapped."""
    prose = re.sub(r"^ {4,}.*$", "", page.read_text(), flags=re.MULTILINE)
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose)]


def commands(page: Path) -> Iterator[str]:
    """Command lines of its code without their comments, continued ones joined; of a sample those in its comments."""
    if page.suffix == ".yaml":
        lines = re.findall(r"^#   (.*)$", page.read_text(), re.MULTILINE)
    else:
        lines = "".join(blocks(page)).replace("\\\n", " ").splitlines()
    for line in lines:
        yield re.split(r"\s+#\s|\s&$", line, maxsplit=1)[0]

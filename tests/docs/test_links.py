"""Links of the pages lead somewhere, and the README's tree matches the repository."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apiserver import ROOT
from tests.docs.pages import PAGES, name


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_existing_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), link
        assert not heading or heading in anchors(to), link


def test_every_page_of_the_docs_is_linked_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())}
    assert {name(page) for page in PAGES if page.parent.name == "docs"} <= linked


def spelled_out(words: str) -> Iterator[str]:
    """Expand `map_{reader,writer}.py` to the two names that it stands for."""
    parts = [part.split(",") for part in re.split(r"[{}]", words)]
    return ("".join(each) for each in itertools.product(*parts))


def test_the_tree_names_existing_files_and_folders() -> None:
    text = (ROOT / "README.md").read_text()
    (tree,) = re.findall(r"## The tree\n\n(.*?)\n## ", text, re.DOTALL)
    above: list[tuple[int, Path]] = [(0, ROOT)]
    for line in filter(None, tree.splitlines()):
        indent = len(line) - len(line.lstrip())
        while above[-1][0] >= indent:
            above.pop()
        here = [above[-1][1], ROOT]
        first = line.split()[0]
        if first.endswith("/"):
            here.append(here[0] / first)
            above.append((indent, here[-1]))
        for words in re.findall(r"[\w*{},]+\.(?:py|lua|proto)\b|(?<![\w/])[\w/]+/(?!\w)", line):
            for each in spelled_out(words):
                assert any(list(folder.glob(each)) for folder in here), f"{each} in {line!r}"

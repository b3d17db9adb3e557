"""The README's figures occur in docs/measured.md, which it names as their source."""

import re

from tests.apiserver import ROOT
from tests.docs.pages import rows

MEASURED = (ROOT / "docs" / "measured.md").read_text()


def test_every_figure_of_the_table_was_measured() -> None:
    (table,) = re.findall(r"## What was measured\n(.*)", (ROOT / "README.md").read_text(), re.DOTALL)
    metric = ""
    for first, _machine, ours, peer, ratio, _goal in rows(table):
        metric = re.match(r"`([^`]+)`", first)[1] if first.startswith("`") else metric  # type: ignore[index]
        told = " ".join(" ".join(row) for row in rows(MEASURED) if row[0].startswith(f"`{metric}`"))
        for figure in (*re.findall(r"[\d.,]*\d", f"{ours} {peer}"), *re.findall(r"[\d.]+x", ratio)):
            assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![\d])", told), f"{metric}: {figure}"

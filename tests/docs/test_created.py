"""The chart's README names all objects that an installation makes, and no others."""

import re

from tests.apiserver import ROOT
from tests.chart.rendering import VARIANTS, render

PAGE = (ROOT / "charts" / "mint" / "README.md").read_text()
PLURALS = {"NetworkPolicies": "NetworkPolicy"}


def named() -> set[tuple[str, str]]:
    """Kind and name of every object in the table, where each name belongs to the kinds before it."""
    (table,) = re.findall(r"## What it creates\n\n.*?\n\|---\|---\|\n(.*?)\n\n", PAGE, re.DOTALL)
    found = set()
    for line in table.splitlines():
        kinds: list[str] = []
        after_name = False
        for name, word in re.findall(r"`([^`]+)`|\b([A-Z]\w+)\b", line.split("|")[1]):
            if word:
                kinds = [word] if after_name else [*kinds, word]
            elif name.startswith("mint"):
                found |= {(PLURALS.get(kind, kind.removesuffix("s")), name) for kind in kinds}
            after_name = bool(name)
    return found


def test_the_table_names_all_objects_and_no_others() -> None:
    made = {(each["kind"], each["metadata"]["name"]) for values in VARIANTS.values() for each in render(values)}
    assert named() == made

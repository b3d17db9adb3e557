"""Paging through lists by name: the page that is asked for, and where the next one starts. Pure."""

import heapq
from collections.abc import Iterable, Mapping

import msgspec

from mint_contracts.errors import InvalidRequest


class Asked(msgspec.Struct, frozen=True):
    """The first `limit` names after `after` that begin with `prefix`."""

    limit: int
    after: str = ""
    prefix: str = ""

    def of(self, names: Iterable[str]) -> tuple[list[str], str]:
        """Return the page's names, sorted, and the next page's `after`, which is empty after the last page."""
        wanted = (name for name in names if name > self.after and name.startswith(self.prefix))
        page = heapq.nsmallest(self.limit + 1, wanted)
        return page[: self.limit], page[self.limit - 1] if len(page) > self.limit else ""


def asked(query: Mapping[str, str], *, default: int, most: int) -> Asked:
    """Read the page asked for from a query. Raises InvalidRequest."""
    return Asked(number(query, "limit", default, 1, most), query.get("after", ""), query.get("prefix", ""))


def number(query: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """Read an integer from a query. Raises InvalidRequest unless it is one from `least` to `most`."""
    text = query.get(name, str(default))
    value = int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else -1
    if not least <= value <= most:
        raise InvalidRequest(name, f"is {text[:100]!r}; it must be from {least} to {most}")
    return value

"""What it costs to follow a JSON schema whose patterns must be matched by one text at once.

llguidance bounds the work on a grammar, but not on one letter of a text: where that must match several patterns (by
`allOf`, or by a `$ref` beside others), it can take as long as the numbers of their parts multiplied. Some 25 patterns
of 20 letters, or six of 500, kept a step for minutes, and with it everybody's requests.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any
from urllib.parse import unquote

MOST = 10**8  # of a product: what takes a tenth of a second

_OPENS = frozenset("[|.\\*+?{")  # what makes a part of a pattern more than a letter
_FORMAT = 100  # parts of the longest pattern that a format stands for
_TOGETHER, _EITHER = ("allOf",), ("anyOf", "oneOf")  # in one place
_NAMED, _LISTED = ("properties", "patternProperties"), ("prefixItems", "items")  # in places of their own
_SINGLE = ("items", "additionalItems", "additionalProperties")

Schema = Mapping[str, Any]


def too_much(schema: Schema) -> bool:
    """Whether patterns that meet in one place of a text take too much work together.

    Places that each have patterns count as one where they can't be told apart: of what meets, the largest of each.
    Raises RecursionError.
    """
    return _Weighing(schema).weigh(schema) > MOST


class _Weighing:
    """The largest product of parts by schema; of one that refers to itself, of what is not yet in it."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[int, int] = {}

    def weigh(self, schema: Any) -> int:
        if not isinstance(schema, dict):
            return 1
        if (known := self._known.get(id(schema))) is not None:
            return known
        self._known[id(schema)] = 1
        inner = max(map(self.weigh, _inner(schema)), default=1)
        beside = prod(map(self.weigh, self._beside(schema)))
        either = prod(max(map(self.weigh, _list(schema, name)), default=1) for name in _EITHER)
        found = self._known[id(schema)] = min(max(_own(schema), inner) * beside * either, MOST + 1)
        return found

    def _beside(self, schema: Schema) -> Iterator[Any]:
        """All that the same text must be."""
        for name in _TOGETHER:
            yield from _list(schema, name)
        if isinstance(reference := schema.get("$ref"), str):
            yield self._find(reference)

    def _find(self, reference: str) -> Any:
        """What is referred to; where that is by more than its place in the whole, all that is there, at once."""
        found: Any = self._root
        path, *steps = unquote(reference).split("/")
        for step in steps:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                found = found.get(name) if isinstance(found, dict) else None
        return found if path == "#" and found is not None and not self._parted else self._everything

    @cached_property
    def _parted(self) -> bool:
        """Whether places are told within a part that has a name of its own."""
        named = (each.get("$id", each.get("id")) for each in _all(self._root) if each is not self._root)
        return any(isinstance(name, str) for name in named)

    @cached_property
    def _everything(self) -> Schema:
        return {
            "allOf": [{key: each[key] for key in ("pattern", "format") if key in each} for each in _all(self._root)]
        }


def _own(schema: Schema) -> int:
    pattern = schema.get("pattern")
    # A pattern may begin anywhere, which is a part, too.
    parts = 2 + sum(letter in _OPENS for letter in pattern) if isinstance(pattern, str) else 1
    return parts * (_FORMAT if "format" in schema else 1)


def _inner(schema: Schema) -> Iterator[Any]:
    """The schemas of what lies in a value."""
    for name in _NAMED:
        if isinstance(named := schema.get(name), dict):
            yield from named.values()
    for name in _LISTED:
        yield from _list(schema, name)
    for name in _SINGLE:
        yield schema.get(name)


def _list(schema: Schema, name: str) -> list[Any]:
    found = schema.get(name)
    return found if isinstance(found, list) else []


def _all(value: Any) -> Iterator[Schema]:
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _all(each)

"""Bounds the cost of following a JSON schema where llguidance does not.

llguidance bounds the work on a grammar, but not on one character of a text: if that must match several patterns (by
`allOf`, or by a `$ref` beside other keywords), the time can be proportional to the product of their numbers of parts.
About 25 patterns of 20 letters, or six of 500, blocked a step, and so all requests, for minutes.

Nor does it bound the time to compile `multipleOf`. It recognises multiples by the remainder of a text's digits modulo
that number, and visits each remainder; if several such numbers apply at one place, even by `anyOf`, it visits each
combination of their remainders. One number of seven digits took minutes, and gigabytes of memory.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any, NamedTuple
from urllib.parse import unquote

MOST = 10**8  # for a product of patterns' parts: takes a tenth of a second
MOST_REMAINDERS = 20_000  # in a complete schema: takes a tenth of a second to compile, and 6 MB
MOST_LOOKS = 50_000  # visits of values that may be schemas: a third of a second

_WIDEST = 2**32  # llguidance's numbers are smaller
_OPENS = frozenset("[|.\\*+?{")  # characters that make a part of a pattern more than a letter
_FORMAT = 100  # parts of the longest pattern that stands for a format
_WEIGHED = ("pattern", "format", "multipleOf")
_TOGETHER, _EITHER = ("allOf",), ("anyOf", "oneOf")  # these apply at the same place
_LISTED = ("prefixItems", "items")  # these have places of their own
_SINGLE = ("items", "additionalItems", "additionalProperties")

Schema = Mapping[str, Any]


class _Weight(NamedTuple):
    """The cost of a schema at its place: the product of its parts, its number's multiples, and remainders inside."""

    parts: int = 1
    multiples: frozenset[tuple[int, int]] = frozenset()  # (a number's digits, how many of them are decimals)
    within: int = 0

    @property
    def remainders(self) -> int:
        """Remainders at this place and inside it."""
        return min(_remainders(self.multiples) + self.within, MOST_REMAINDERS + 1)


def too_much(schema: Schema) -> str:
    """Return why following a schema takes too much work, or "" if it does not.

    The patterns of several places inside a value count as those of one place, the largest. Multiples add up over all
    places, each time that a place is referred to. Raises RecursionError.
    """
    weight = _Weighing(schema).whole()
    if weight.parts > MOST:
        return "too many patterns, or patterns that are too long, must match the same text; use fewer or shorter ones"
    if weight.remainders > MOST_REMAINDERS:
        return (
            "multipleOf has numbers that are too large or too many: their significant digits, multiplied where "
            f"several apply to one value, may add up to at most {MOST_REMAINDERS}"
        )
    return ""


class _Tangled(Exception):
    """Schemas refer to one another in too many ways to visit them all."""


class _Weighing:
    """Weights by schema; a reference from a schema to one that contains it adds nothing.

    What this omits depends on the path to a schema: inside a recursive schema, another may weigh less than elsewhere.
    Such a weight is not kept, and the schema is weighed again when it is reached on another path.
    """

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[int, _Weight] = {}
        self._above: dict[int, int] = {}  # depth of each schema that is being weighed
        self._cut = 0  # the least depth at which one of these was reached again
        self._looks: float = MOST_LOOKS
        self._parts: dict[int, int] = {}  # parts by schema, cached since patterns may be long
        self._places: dict[str, Any] = {}  # schemas by reference, cached since references may be long, too

    def whole(self) -> _Weight:
        """Return the weight of the root; if its schemas are too tangled, of all that is in it, as if in one place."""
        try:
            return self._weigh(self._root)
        except _Tangled:
            self._looks = math.inf
            return self._weigh(self._everything)

    def _weigh(self, schema: Any) -> _Weight:
        """Return a schema's weight; none for one that is being weighed already."""
        self._looks -= 1
        if self._looks < 0:
            raise _Tangled
        if not isinstance(schema, dict):
            return _Weight()
        if (known := self._known.get(id(schema))) is not None:
            return known
        if (above := self._above.get(id(schema))) is not None:
            self._cut = min(self._cut, above)
            return _Weight()
        above = self._above[id(schema)] = len(self._above)
        before, self._cut = self._cut, above
        # A property can match by its name and by a pattern: its value must then match both.
        inner = [self._each(_inner(schema)), self._each(_values(schema, "patternProperties"))]
        if id(schema) not in self._parts:
            self._parts[id(schema)] = _own(schema)
        parts = max(self._parts[id(schema)], prod(each.parts for each in inner))
        own = _Weight(parts, _multiples(schema), _together(inner).within)
        beside = [self._weigh(each) for each in self._beside(schema)]
        either = [_either(map(self._weigh, _list(schema, name))) for name in _EITHER]
        found = _together([own, *beside, *either])
        del self._above[id(schema)]
        if self._cut == above:  # no schema above it was omitted
            self._known[id(schema)] = found
        self._cut = min(self._cut, before)
        return found

    def _each(self, schemas: Iterable[Any]) -> _Weight:
        """Return the weight of schemas for the parts of a value, each at a place of its own."""
        found = [self._weigh(each) for each in schemas]
        return _Weight(max((each.parts for each in found), default=1), within=sum(each.remainders for each in found))

    def _beside(self, schema: Schema) -> Iterator[Any]:
        """Yield the schemas that the same text must match as well."""
        for name in _TOGETHER:
            yield from _list(schema, name)
        if isinstance(reference := schema.get("$ref"), str):
            if reference not in self._places:
                self._places[reference] = self._find(reference)
            yield self._places[reference]

    def _find(self, reference: str) -> Any:
        """Return the schema that is referred to; if it is not a plain path from the root, all schemas at once."""
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
        """Whether some part has an id of its own, so that paths may be relative to it."""
        named = (each.get("$id", each.get("id")) for each in _all(self._root) if each is not self._root)
        return any(isinstance(name, str) for name in named)

    @cached_property
    def _everything(self) -> Schema:
        return {"allOf": [{key: each[key] for key in _WEIGHED if key in each} for each in _all(self._root)]}


def _together(weights: list[_Weight]) -> _Weight:
    """Return the weight of schemas that one value must all match: what is inside occurs in every combination."""
    return _Weight(
        min(prod(each.parts for each in weights), MOST + 1),
        _few(each.multiples for each in weights),
        min(prod(1 + each.within for each in weights) - 1, MOST_REMAINDERS + 1),
    )


def _either(weights: Iterable[_Weight]) -> _Weight:
    """Return the weight of schemas of which one value must match one: a number is checked for all of them at once."""
    found = list(weights)
    return _Weight(
        max((each.parts for each in found), default=1),
        _few(each.multiples for each in found),
        sum(each.within for each in found),
    )


def _few(multiples: Iterable[frozenset[tuple[int, int]]]) -> frozenset[tuple[int, int]]:
    """Return all multiples, or a single one above the limit if they exceed it."""
    found = frozenset[tuple[int, int]]().union(*multiples)
    return found if _remainders(found) <= MOST_REMAINDERS else frozenset({(MOST_REMAINDERS + 1, 0)})


def _multiples(schema: Schema) -> frozenset[tuple[int, int]]:
    """Return a schema's `multipleOf` as llguidance reads it; nothing if it refuses the value."""
    multiple = schema.get("multipleOf")
    if not isinstance(multiple, int | float) or abs(multiple) >= _WIDEST or math.isnan(multiple):
        return frozenset()
    number, behind = abs(float(multiple)), 0
    while number % 1:
        number, behind = number * 10, behind + 1
    return frozenset({(int(number), behind)}) if 0 < number < _WIDEST else frozenset()


def _remainders(multiples: frozenset[tuple[int, int]]) -> int:
    """Return the number of distinct remainders, up to one above the limit; 0 if there is only one."""
    found = 1
    for digits, _ in multiples:
        found *= digits
        if found > MOST_REMAINDERS:
            return MOST_REMAINDERS + 1
    behind = [places for _, places in multiples] or [0]
    # Scaled to equal decimals, the numbers must not overflow: llguidance would continue with wrong ones.
    if found * 10 ** (max(behind) - min(behind)) >= _WIDEST:
        return MOST_REMAINDERS + 1
    return found if found > 1 else 0


def _own(schema: Schema) -> int:
    pattern = schema.get("pattern")
    # A pattern may match anywhere, and what precedes it is a part, too.
    parts = 2 + sum(letter in _OPENS for letter in pattern) if isinstance(pattern, str) else 1
    return parts * (_FORMAT if "format" in schema else 1)


def _inner(schema: Schema) -> Iterator[Any]:
    """Yield the schemas for the parts of a value, except `patternProperties`."""
    yield from _values(schema, "properties")
    for name in _LISTED:
        yield from _list(schema, name)
    for name in _SINGLE:
        yield schema.get(name)


def _values(schema: Schema, name: str) -> list[Any]:
    found = schema.get(name)
    return list(found.values()) if isinstance(found, dict) else []


def _list(schema: Schema, name: str) -> list[Any]:
    found = schema.get(name)
    return found if isinstance(found, list) else []


def _all(value: Any) -> Iterator[Schema]:
    """Yield every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _all(each)

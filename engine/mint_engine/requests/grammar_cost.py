"""What it costs to follow a JSON schema, where llguidance does not bound it.

llguidance bounds the work on a grammar, but not on one letter of a text: where that must match several patterns (by
`allOf`, or by a `$ref` beside others), it can take as long as the numbers of their parts multiplied. Some 25 patterns
of 20 letters, or six of 500, kept a step for minutes, and with it everybody's requests.

Nor does it bound how long multiples of a number take to compile. It knows them by what is left of a text's digits
when they are divided by that number, and looks at each remainder; where several such numbers meet in one place, by
`anyOf` too, at each of all of them together. One number of seven digits took minutes, and gigabytes of memory.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from math import prod
from typing import Any, NamedTuple
from urllib.parse import unquote

MOST = 10**8  # of a product of patterns' parts: what takes a tenth of a second
MOST_REMAINDERS = 20_000  # of a whole schema: what takes as long to compile, and 6 MB
MOST_LOOKS = 50_000  # at what may be a schema, each time that it is come to: a third of a second

_WIDEST = 2**32  # of the numbers that llguidance reckons with
_OPENS = frozenset("[|.\\*+?{")  # what makes a part of a pattern more than a letter
_FORMAT = 100  # parts of the longest pattern that a format stands for
_WEIGHED = ("pattern", "format", "multipleOf")
_TOGETHER, _EITHER = ("allOf",), ("anyOf", "oneOf")  # in one place
_LISTED = ("prefixItems", "items")  # in places of their own
_SINGLE = ("items", "additionalItems", "additionalProperties")

Schema = Mapping[str, Any]


class _Weight(NamedTuple):
    """What a schema costs where it is: its parts multiplied, what its number is a multiple of, remainders within."""

    parts: int = 1
    multiples: frozenset[tuple[int, int]] = frozenset()  # a number's digits, and how many are behind its point
    within: int = 0

    @property
    def remainders(self) -> int:
        """In this place, and all within it."""
        return min(_remainders(self.multiples) + self.within, MOST_REMAINDERS + 1)


def too_much(schema: Schema) -> str:
    """Why following a schema takes too much work; "" where it does not.

    Places that each have patterns count as one where they can't be told apart: of what meets, the largest of each.
    Places with multiples count together, each time that they are referred to. Raises RecursionError.
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
    """Schemas refer to one another in more ways than can be looked at."""


class _Weighing:
    """Weights by schema; of one that refers to itself, of what is not yet in it.

    What that leaves out depends on where it was come from: within such a schema, another one weighs less than it does
    elsewhere. Its weight there is not kept, and it is weighed anew where it is come to by another way.
    """

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._known: dict[int, _Weight] = {}
        self._above: dict[int, int] = {}  # how many are above a schema that is being weighed
        self._cut = 0  # how many are above the highest of these that was come to again
        self._looks: float = MOST_LOOKS
        self._parts: dict[int, int] = {}  # of schemas: patterns may be long
        self._places: dict[str, Any] = {}  # by reference, which may be long, too

    def whole(self) -> _Weight:
        """Of the root; where its schemas are too tangled, of all that is in it, as if in one place."""
        try:
            return self.weigh(self._root)
        except _Tangled:
            self._looks = math.inf
            return self.weigh(self._everything)

    def weigh(self, schema: Any) -> _Weight:
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
        # A property may be one by its name and by a pattern: it must then be both.
        inner = [self._each(_inner(schema)), self._each(_values(schema, "patternProperties"))]
        if id(schema) not in self._parts:
            self._parts[id(schema)] = _own(schema)
        parts = max(self._parts[id(schema)], prod(each.parts for each in inner))
        own = _Weight(parts, _multiples(schema), _together(inner).within)
        beside = [self.weigh(each) for each in self._beside(schema)]
        either = [_either(map(self.weigh, _list(schema, name))) for name in _EITHER]
        found = _together([own, *beside, *either])
        del self._above[id(schema)]
        if self._cut == above:  # nothing above it is left out
            self._known[id(schema)] = found
        self._cut = min(self._cut, before)
        return found

    def _each(self, schemas: Iterable[Any]) -> _Weight:
        """Of what lies in a value, each in a place of its own."""
        found = [self.weigh(each) for each in schemas]
        return _Weight(max((each.parts for each in found), default=1), within=sum(each.remainders for each in found))

    def _beside(self, schema: Schema) -> Iterator[Any]:
        """All that the same text must be."""
        for name in _TOGETHER:
            yield from _list(schema, name)
        if isinstance(reference := schema.get("$ref"), str):
            if reference not in self._places:
                self._places[reference] = self._find(reference)
            yield self._places[reference]

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
        return {"allOf": [{key: each[key] for key in _WEIGHED if key in each} for each in _all(self._root)]}


def _together(weights: list[_Weight]) -> _Weight:
    """Of what one value must be all of: what lies in it is there in every combination."""
    return _Weight(
        min(prod(each.parts for each in weights), MOST + 1),
        _few(each.multiples for each in weights),
        min(prod(1 + each.within for each in weights) - 1, MOST_REMAINDERS + 1),
    )


def _either(weights: Iterable[_Weight]) -> _Weight:
    """Of what one value must be one of: a number is looked at for all of them at once."""
    found = list(weights)
    return _Weight(
        max((each.parts for each in found), default=1),
        _few(each.multiples for each in found),
        sum(each.within for each in found),
    )


def _few(multiples: Iterable[frozenset[tuple[int, int]]]) -> frozenset[tuple[int, int]]:
    """All of them, or one that is too much as they are."""
    found = frozenset[tuple[int, int]]().union(*multiples)
    return found if _remainders(found) <= MOST_REMAINDERS else frozenset({(MOST_REMAINDERS + 1, 0)})


def _multiples(schema: Schema) -> frozenset[tuple[int, int]]:
    """As llguidance reads it: nothing of what it refuses."""
    multiple = schema.get("multipleOf")
    if not isinstance(multiple, int | float) or abs(multiple) >= _WIDEST or math.isnan(multiple):
        return frozenset()
    number, behind = abs(float(multiple)), 0
    while number % 1:
        number, behind = number * 10, behind + 1
    return frozenset({(int(number), behind)}) if 0 < number < _WIDEST else frozenset()


def _remainders(multiples: frozenset[tuple[int, int]]) -> int:
    """How many are told apart: none where all numbers have the same; up to what is too much."""
    found = 1
    for digits, _ in multiples:
        found *= digits
        if found > MOST_REMAINDERS:
            return MOST_REMAINDERS + 1
    behind = [places for _, places in multiples] or [0]
    # Brought to as many digits behind the point, the numbers may not be too wide: it would go on with any other.
    if found * 10 ** (max(behind) - min(behind)) >= _WIDEST:
        return MOST_REMAINDERS + 1
    return found if found > 1 else 0


def _own(schema: Schema) -> int:
    pattern = schema.get("pattern")
    # A pattern may begin anywhere, which is a part, too.
    parts = 2 + sum(letter in _OPENS for letter in pattern) if isinstance(pattern, str) else 1
    return parts * (_FORMAT if "format" in schema else 1)


def _inner(schema: Schema) -> Iterator[Any]:
    """The schemas of what lies in a value, but for those by patterns."""
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
    """Every object in a JSON value."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _all(each)

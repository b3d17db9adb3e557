"""The cost of following a schema that refers to itself does not depend on the order of its references."""

import time
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_engine.requests.grammar_cost import MOST_REMAINDERS, too_much

TOO_LARGE = "multipleOf has numbers that are too large or too many"
NUMBERS = (101, 199, 211)  # any two are too much in one place; all three are fine in separate places
KINDS = 14


class Named(NamedTuple):
    """A schema that refers to others by number: those it must also match, and those its members must match."""

    multiple: int | None
    beside: list[int]
    members: list[int]


def reference(number: int) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{number}"}


def members(numbers: Sequence[int]) -> dict[str, Any]:
    return {"properties": {f"p{number}": reference(number) for number in numbers}}


def written(each: Named) -> dict[str, Any]:
    own = {} if each.multiple is None else {"multipleOf": each.multiple}
    return {"allOf": [*map(reference, each.beside), own]} | members(each.members)


def in_one_place(schemas: list[Named], number: int) -> set[int]:
    """By a plain search: what a number in this place must be a multiple of."""
    seen, ahead = set[int](), [number]
    while ahead:
        if (at := ahead.pop()) not in seen:
            seen.add(at)
            ahead += schemas[at].beside
    return {multiple for at in seen if (multiple := schemas[at].multiple) is not None}


@pytest.mark.parametrize(("member", "item"), [("X", "Y"), ("Y", "X")])
def test_multiples_that_meet_in_a_cycle_are_found_from_any_entry(member: str, item: str) -> None:
    """If X were reached first, Y would be weighed without it. (Compiling it takes hours, and all memory.)"""
    x = {"multipleOf": 9973, "properties": {"a": {"$ref": "#/$defs/Y"}}}
    y = {"allOf": [{"$ref": "#/$defs/X"}, {"multipleOf": 4999}]}
    told = {"properties": {"p": {"$ref": f"#/$defs/{member}"}}, "prefixItems": [{"$ref": f"#/$defs/{item}"}]}
    assert too_much(told | {"$defs": {"X": x, "Y": y}}).startswith(TOO_LARGE)


@pytest.mark.parametrize("names", ["XY", "YX"])
def test_patterns_that_meet_by_way_of_a_cycle_are_found_too(names: str) -> None:
    long = {"pattern": 10_000 * "."}
    x = long | {"properties": {"a": {"$ref": "#/$defs/Y"}}}
    y = {"allOf": [{"$ref": "#/$defs/X"}, long]}
    told = {"properties": {name: {"$ref": f"#/$defs/{name}"} for name in names}}
    assert too_much(told | {"$defs": {"X": x, "Y": y}}).startswith("too many patterns")


numbers = st.lists(st.integers(0, 3), max_size=2)


@given(
    schemas=st.lists(
        st.builds(Named, st.none() | st.sampled_from(NUMBERS), numbers, numbers), min_size=4, max_size=4
    ),
    entered=st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True),
)
def test_no_order_of_references_hides_what_meets(schemas: list[Named], entered: list[int]) -> None:
    told = members(entered) | {"$defs": {str(at): written(each) for at, each in enumerate(schemas)}}
    if any(prod(in_one_place(schemas, number)) > MOST_REMAINDERS for number in entered):
        assert too_much(told).startswith(TOO_LARGE)


def kinds(**more: dict[str, Any]) -> dict[str, Any]:
    """Schemas that each have all others as members."""
    every = {str(number): members([at for at in range(KINDS) if at != number]) for number in range(KINDS)}
    return members([0]) | {"$defs": {name: each | more.get(f"k{name}", {}) for name, each in every.items()}}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (kinds(), ""),
        (kinds(k0={"multipleOf": 101}, k9={"pattern": "a" * 10**6}), ""),
        (kinds(k0={"multipleOf": 101}, k9={"multipleOf": 211}), TOO_LARGE),
    ],
)
def test_schemas_that_are_too_tangled_to_look_through_weigh_as_if_all_met_in_one_place(
    schema: dict[str, Any], says: str
) -> None:
    began = time.thread_time()
    assert too_much(schema)[: len(TOO_LARGE)] == says
    assert time.thread_time() - began < 5


def test_of_many_kinds_that_are_within_one_another_each_may_have_a_form() -> None:
    """As with nodes of a syntax tree; all of their patterns together would be far too much."""
    node = {
        f"k{number}": {
            "properties": {"at": {"format": "date-time"}, "size": {"multipleOf": 7}, "next": {"$ref": "#/$defs/node"}}
        }
        for number in range(KINDS)
    }
    every = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in node]}
    assert too_much({"$ref": "#/$defs/node", "$defs": node | {"node": every}}) == ""

"""Objects have the properties that their schema names, unless it says something of others."""

import json
from typing import Any

import pytest
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from mint_engine.requests.closing import closed
from tests.engine.schemas import may_come

A, B = {"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}
CLOSED = A | {"additionalProperties": False}


class Hold(BaseModel):
    """A model whose schema says nothing of other properties, as pydantic writes most."""

    crates: int


class Ship(BaseModel):
    """Another that refers to it."""

    holds: list[Hold]
    flag: Hold | None


def test_an_answer_does_not_go_on_with_properties_that_nobody_named(tokenizer: PreTrainedTokenizerBase) -> None:
    schema, ship = Ship.model_json_schema(), {"holds": [{"crates": 1}], "flag": None}
    assert "additionalProperties" not in json.dumps(schema)
    assert may_come(tokenizer, schema, ship)
    assert not may_come(tokenizer, schema, ship | {"type": "ship"})
    assert not may_come(tokenizer, schema, ship | {"holds": [{"crates": 1, "type": "hold"}]})
    assert may_come(tokenizer, schema | {"additionalProperties": True}, ship | {"type": "ship"})


@pytest.mark.parametrize(
    ("schema", "found"),
    [
        (A, CLOSED),
        ({"properties": {}}, {"properties": {}, "additionalProperties": False}),
        ({"items": A}, {"items": CLOSED}),
        ({"anyOf": [A, B | {"minProperties": 1}]}, {"anyOf": [CLOSED, B | {"minProperties": 1}]}),
        ({"$ref": "#/$defs/c", "$defs": {"c": A}}, {"$ref": "#/$defs/c", "$defs": {"c": CLOSED}}),
        ({"allOf": [A], "title": "of old pydantic"}, {"allOf": [CLOSED], "title": "of old pydantic"}),
        # Others in the same document may be described by several schemas, or only look like it.
        ({"items": A, "$defs": {"c": {"allOf": [A, B]}}}, {"items": CLOSED, "$defs": {"c": {"allOf": [A, B]}}}),
        ({"anyOf": [{"allOf": [A, B]}, A]}, {"anyOf": [{"allOf": [A, B]}, CLOSED]}),
        (
            {"$ref": "#/$defs/c", "required": ["d"], "$defs": {"c": {"$ref": "#/$defs/d~1e"}, "d/e": A, "f": A}},
            {"$ref": "#/$defs/c", "required": ["d"], "$defs": {"c": {"$ref": "#/$defs/d~1e"}, "d/e": A, "f": CLOSED}},
        ),
        ({"items": A, "default": {"allOf": [A, B]}}, {"items": CLOSED, "default": {"allOf": [A, B]}}),
        (
            {"properties": {"anyOf": A, "properties": A}},
            {"properties": {"anyOf": CLOSED, "properties": CLOSED}, "additionalProperties": False},
        ),
    ],
)
def test_objects_are_closed_at_any_depth(schema: dict[str, Any], found: dict[str, Any]) -> None:
    assert closed(json.loads(json.dumps(schema))) == found  # in which no two schemas are the same object


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"const": A, "default": A},
        A | {"additionalProperties": {"type": "integer"}},
        A | {"required": ["a", "c"]},
        A | {"required": [["a"]]},
        A | {"minProperties": 2},
        {"allOf": [A, B]},
        {"allOf": [{"properties": {"c": A}}, {"properties": {"c": B}}]},
        {"allOf": [{"items": A}, {"items": B}]},
        A | {"anyOf": [B]},
        A | {"patternProperties": {"^a": B}},
        {"$ref": "#/$defs/c", "anyOf": [B], "$defs": {"c": A}},
        {"$ref": "#/$defs/c", "additionalProperties": True, "$defs": {"c": A}},
        {"$ref": "#/$defs/c", "required": ["z"], "$defs": {"c": A}},
        {"items": {"$ref": "#/$defs/c", "required": ["z"]}, "$defs": {"c": A}},
        {"anyOf": [A, B], "additionalProperties": True},
        {"type": "object", "required": ["kind"], "anyOf": [A, B]},
        {"oneOf": [A, B], "minProperties": 2},
        {"allOf": [A], "required": ["a", "b"]},
        {"$ref": "#/items/anyOf/0", "required": ["z"], "items": {"anyOf": [A | {"required": ["z"]}]}},
        {"$ref": "#it", "required": ["z"], "$defs": {"c": A | {"$anchor": "it"}}},
        {"items": {"$ref": "it", "required": ["z"]}, "$defs": {"c": A | {"$id": "it"}}},
        {"$ref": "#/$defs/gone", "required": ["z"], "$defs": {"c": A}},
    ],
)
def test_what_may_need_other_properties_stays_open(schema: dict[str, Any]) -> None:
    assert closed(json.loads(json.dumps(schema))) == schema


def test_several_schemas_of_one_object_can_still_be_met(tokenizer: PreTrainedTokenizerBase) -> None:
    assert may_come(tokenizer, {"allOf": [A, B], "required": ["a", "b"]}, {"a": 1, "b": 2})
    assert may_come(tokenizer, {"type": "object", "anyOf": [A, B], "required": ["kind"]}, {"a": 1, "kind": 2})

"""Objects have the properties that their schema names, unless it says something of others."""

import json
from typing import Any

import pytest
from pydantic import BaseModel
from transformers import PreTrainedTokenizerBase

from mint_engine.requests.closing import closed
from mint_engine.requests.grammar import Grammars, Shape

A, B = {"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}
CLOSED = A | {"additionalProperties": False}


class Hold(BaseModel):
    """A model whose schema says nothing of other properties, as pydantic writes most."""

    crates: int


class Ship(BaseModel):
    """Another that refers to it."""

    holds: list[Hold]
    flag: Hold | None


def may_come(tokenizer: PreTrainedTokenizerBase, schema: dict[str, Any], value: Any) -> bool:
    """Whether the value may be the complete answer under the schema."""
    grammar = Grammars(tokenizer, {0}).compile(Shape("json_schema", json.dumps(schema)))
    tokens = tokenizer.encode(json.dumps(value))
    return grammar.matcher.validate_tokens(tokens) == len(tokens)


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
    ],
)
def test_objects_are_closed_at_any_depth(schema: dict[str, Any], found: dict[str, Any]) -> None:
    assert closed(schema) == found


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
        A | {"anyOf": [B]},
        A | {"patternProperties": {"^a": B}},
        {"$ref": "#/$defs/c", "anyOf": [B], "$defs": {"c": A}},
    ],
)
def test_what_may_need_other_properties_stays_open(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


def test_several_schemas_of_one_object_can_still_be_met(tokenizer: PreTrainedTokenizerBase) -> None:
    assert may_come(tokenizer, {"allOf": [A, B], "required": ["a", "b"]}, {"a": 1, "b": 2})

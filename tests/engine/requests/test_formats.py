"""Formats that the grammars know constrain the answer; others have no effect, as JSON Schema allows."""

import json
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher
from pydantic import BaseModel, SecretStr
from transformers import PreTrainedTokenizerBase

from mint_engine.requests.formats import KNOWN, known_alone
from tests.engine.schemas import may_come

# JSON Schema's own (2020-12), and some of OpenAPI's and pydantic's.
NAMED = """
date date-time time duration email idn-email hostname idn-hostname ipv4 ipv6 uri uri-reference iri iri-reference uuid
uri-template json-pointer relative-json-pointer regex
binary byte password path file-path color int32 int64 float double google-datetime decimal json-string
"""
TEXT = {"type": "string"}
OTHER = TEXT | {"format": "binary"}


def test_the_known_formats_are_those_that_the_library_enforces() -> None:
    def is_taken(name: str) -> bool:
        grammar = json.dumps({"type": "string", "format": name})
        return not LLMatcher.validate_grammar(f"%llguidance {{}}\nstart: %json {grammar}")

    assert {name for name in NAMED.split() if is_taken(name)} == KNOWN


class Letter(BaseModel):
    """A model with formats that no grammar knows."""

    seal: bytes
    word: SecretStr
    lies: Path
    of: list[bytes | None] = []


def test_pydantics_schemas_are_enforced_without_unknown_formats(tokenizer: PreTrainedTokenizerBase) -> None:
    schema = Letter.model_json_schema()
    written = json.dumps(schema)
    assert all(f'"format": "{name}"' in written for name in ("binary", "password", "path"))
    letter = {"seal": "wax", "word": "sea", "lies": "/a", "of": ["b", None]}
    assert may_come(tokenizer, schema, letter)
    assert not may_come(tokenizer, schema, letter | {"seal": 1})


def test_a_format_that_is_known_is_held_to(tokenizer: PreTrainedTokenizerBase) -> None:
    for name in ("date", "day"):
        schema = {"properties": {"a": {"type": "string", "format": name}}, "required": ["a"]}
        assert may_come(tokenizer, schema, {"a": "2024-02-29"})
        assert may_come(tokenizer, schema, {"a": "soon"}) == (name == "day")


@pytest.mark.parametrize(
    ("schema", "left"),
    [
        (OTHER, TEXT),
        ({"items": OTHER}, {"items": TEXT}),
        ({"prefixItems": [OTHER, True]}, {"prefixItems": [TEXT, True]}),
        ({"anyOf": [{"not": OTHER}]}, {"anyOf": [{"not": TEXT}]}),
        ({"$defs": {"format": OTHER}}, {"$defs": {"format": TEXT}}),
        ({"definitions": {"a": {"properties": {"b": OTHER}}}}, {"definitions": {"a": {"properties": {"b": TEXT}}}}),
        ({"$ref": "#/more/one", "more": {"one": OTHER}}, {"$ref": "#/more/one", "more": {"one": TEXT}}),
    ],
)
def test_unknown_formats_are_left_out_at_any_depth_of_a_schema(schema: dict[str, Any], left: dict[str, Any]) -> None:
    assert known_alone(schema) == left


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"format": {"const": OTHER}, "kind": {"enum": [OTHER]}}, "required": ["format"]},
        {"patternProperties": {"format": True}, "default": OTHER, "examples": [OTHER]},
        {"properties": {"properties": {"properties": {"format": {"type": "string"}}}}},
        {"type": "string", "format": "uuid"},
        {"format": 3},
    ],
)
def test_fields_that_only_look_like_formats_stay(schema: dict[str, Any]) -> None:
    assert known_alone(schema) == schema

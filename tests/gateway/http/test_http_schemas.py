"""A schema moved into another means the same there as alone, whatever ids and anchors it uses."""

from typing import Any

import jsonschema
import pytest

from mint_gateway.http.schemas import moved

Json = dict[str, Any]
SEA = {"enum": ["north", "south"]}
NAMED = {"$id": "https://charts/depth", "type": "object", "required": ["sea"]}


def placed(schema: Json) -> Json:
    """Return a document with two copies of it, as for two functions with the same parameters."""
    places = {name: f"#/$defs/{name}" for name in ("one", "two")}
    return {
        "$defs": {name: moved(schema, place) for name, place in places.items()},
        "anyOf": [{"$ref": place} for place in places.values()],
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"sea": {"$ref": "#/$defs/Sea"}}, "$defs": {"Sea": SEA}, "required": ["sea"]},
        NAMED | {"properties": {"sea": {"$ref": "#/$defs/Sea"}}, "$defs": {"Sea": SEA}},
        NAMED | {"properties": {"sea": {"$ref": "depth#/$defs/Sea"}}, "$defs": {"Sea": SEA}},
        NAMED | {"properties": {"sea": {"$ref": "https://charts/depth#/$defs/Sea"}}, "$defs": {"Sea": SEA}},
        NAMED | {"properties": {"sea": {"$ref": "sea"}}, "$defs": {"Sea": {"$id": "sea"} | SEA}},
        NAMED | {"properties": {"sea": {"$ref": "sea#"}}, "definitions": {"Sea": {"$id": "/sea"} | SEA}},
        NAMED | {"properties": {"sea": {"$ref": "#sea"}}, "$defs": {"Sea": {"$anchor": "sea"} | SEA}},
        NAMED | {"properties": {"sea": {"$ref": "b#/$defs/1"}}, "$defs": {"a": {"$id": "b", "$defs": {"1": SEA}}}},
        NAMED | {"$id": "urn:a", "properties": {"sea": {"$ref": "#/$defs/Sea"}}, "$defs": {"Sea": SEA}},
        NAMED | {"properties": {"sea": {"$ref": "#/$defs/a%20~1%20b"}}, "$defs": {"a / b": SEA}},
        NAMED | {"properties": {"sea": {"$ref": "sea"}}, "$defs": {"a / ~ü": {"allOf": [{}, {"$id": "sea"} | SEA]}}},
        NAMED | {"properties": {"sea": SEA, "on": {"$ref": "#"}}},
        NAMED | {"properties": {"sea": SEA, "on": {"$ref": "https://charts/depth"}}},
    ],
)  # fmt: skip
def test_it_takes_and_refuses_the_same(schema: Json) -> None:
    alone, within = (jsonschema.Draft202012Validator(each) for each in (schema, placed(schema)))
    jsonschema.Draft202012Validator.check_schema(placed(schema))
    values: list[Any] = [{"sea": "north"}, {"sea": "east"}, {}, {"sea": "south", "on": {"sea": "north"}}]
    values += [{"sea": "south", "on": {"sea": "east"}}, {"sea": "north", "on": 3}]
    assert alone.is_valid(values[0])
    assert not alone.is_valid(values[1])
    for value in values:
        assert within.is_valid(value) == alone.is_valid(value), value


def test_names_and_values_that_look_like_keywords_stay() -> None:
    schema: Json = {
        "properties": {"$id": {"type": "string"}, "$ref": {"$ref": "#/$defs/a"}, "enum": {"$ref": "#"}},
        "enum": [{"$id": "a", "$ref": "#/b"}],
        "const": {"$ref": "#/b"},
        "$id": 3,
    }
    rewritten = moved(schema, "#/$defs/it")
    assert rewritten == schema | {
        "properties": {
            "$id": {"type": "string"},
            "$ref": {"$ref": "#/$defs/it/$defs/a"},
            "enum": {"$ref": "#/$defs/it"},
        }
    }


def test_references_out_of_the_schema_stay() -> None:
    for out in ("https://elsewhere/sea", "#nowhere", "sea#/a"):
        assert moved(NAMED | {"items": {"$ref": out}}, "#/$defs/it")["items"] == {"$ref": out}

"""JSON schemas of users: compiled once, never fetching anything, with their patterns matched in bounded time."""

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import SchemaError
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

from mint_contracts.errors import InvalidRequest
from mint_engine.rewards.patterns import compile_pattern, matches

MAX_SCHEMA = 64 << 10  # characters


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not matches(compile_pattern(pattern), instance):
        yield ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator = extend(Draft202012Validator, {"pattern": _pattern})  # type: ignore[no-untyped-call]


class Schema:
    """One compiled schema."""

    def __init__(self, text: str) -> None:
        """Raises InvalidRequest for what is no schema, or one that refers outside of itself."""
        if len(text) > MAX_SCHEMA:
            raise InvalidRequest("reward.jsonSchema", f"has more than {MAX_SCHEMA} characters")
        try:
            schema = json.loads(text)
            Draft202012Validator.check_schema(schema)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest("reward.jsonSchema", f"is no JSON: {error}") from None
        except SchemaError as error:
            raise InvalidRequest("reward.jsonSchema", f"is no JSON schema: {error.message[:300]}") from None
        if "patternProperties" in text:
            raise InvalidRequest("reward.jsonSchema", "uses patternProperties, which has no bound in time")
        self._validator = _Validator(schema, registry=Registry())

    def accepts(self, text: str) -> bool:
        """Whether a text is one JSON value that the schema accepts. NaN and infinity are no JSON."""
        try:
            value = json.loads(text, parse_constant=_refuse)
            return bool(self._validator.is_valid(value))
        except (ValueError, RecursionError):
            return False
        except Unresolvable as error:
            raise InvalidRequest("reward.jsonSchema", f"refers to what it does not hold: {error}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")

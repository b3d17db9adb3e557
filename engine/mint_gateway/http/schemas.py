"""Moving a JSON schema into another, so that its internal references stay valid there. Pure.

In draft 2020-12, a schema with an `$id` is a resource of its own, and references are relative to it
(https://json-schema.org/draft/2020-12/json-schema-core#section-8.2). Two with the same `$id` could not be in one
document, so `$id` and `$anchor` are removed here, and references become pointers into the enclosing document.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urldefrag, urljoin

from mint_contracts.json_schema import DATA, MAPS, rewritten

_NAMES = frozenset(("$id", "$anchor"))


class _Found(NamedTuple):
    """A subschema: the URI that its references are relative to, and the pointer to it from the document's root."""

    schema: dict[str, Any]
    base: str
    pointer: str


def moved(schema: dict[str, Any], place: str) -> dict[str, Any]:
    """Return the schema rewritten for `place`, a pointer (with its `#`) into another schema.

    Raises RecursionError, and ValueError for an invalid URI.
    """
    places: dict[str, str] = {"": place}
    for each in _schemas(schema, "", place):
        if isinstance(each.schema.get("$id"), str):
            places[each.base] = each.pointer
        if isinstance(anchor := each.schema.get("$anchor"), str):
            places[f"{each.base}#{anchor}"] = each.pointer
    return _rewritten(schema, "", places)


def _schemas(schema: dict[str, Any], base: str, pointer: str) -> Iterator[_Found]:
    """Yield a schema and all its subschemas."""
    base = _base(schema, base)
    yield _Found(schema, base, pointer)
    for name, value in schema.items():
        for inner, at in _inner(name, value):
            yield from _schemas(inner, base, f"{pointer}/{_token(name)}{at}")


def _inner(name: str, value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the schemas in a keyword's value, each with its pointer within the value."""
    if name in DATA:
        return
    if isinstance(value, dict) and name not in MAPS:
        yield value, ""
        return
    among = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for at, each in among:
        if isinstance(each, dict):
            yield each, f"/{_token(str(at))}"


def _rewritten(schema: dict[str, Any], base: str, places: dict[str, str]) -> dict[str, Any]:
    base, found = _base(schema, base), dict[str, Any]()
    for name, value in schema.items():
        if name in _NAMES and isinstance(value, str):
            continue
        if name == "$ref" and isinstance(value, str):
            found[name] = _reference(_absolute(base, value), value, places)
        else:
            found[name] = rewritten(name, value, lambda each: _rewritten(each, base, places))
    return found


def _reference(absolute: str, reference: str, places: dict[str, str]) -> str:
    """Return a reference rewritten to its new place; one that leads out of the schema is unchanged."""
    resource, fragment = urldefrag(absolute)
    if not fragment or fragment.startswith("/"):
        return places[resource] + fragment if resource in places else reference
    return places.get(f"{resource}#{unquote(fragment)}", reference)


def _absolute(base: str, reference: str) -> str:
    if reference.startswith("#"):
        return base + reference  # urljoin does not handle schemes such as urn
    return urljoin(base, reference)


def _base(schema: dict[str, Any], base: str) -> str:
    own = schema.get("$id")
    return urldefrag(urljoin(base, own)).url if isinstance(own, str) else base


def _token(name: str) -> str:
    """Escape a name for a JSON pointer in a URI fragment."""
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~")

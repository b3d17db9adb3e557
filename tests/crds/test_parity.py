"""The CRDs and the structs of mint_contracts.resources agree, field by field, in both directions."""

import re
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
import yaml

from mint_contracts import durations, names, resources
from mint_contracts.entries import LABEL_KEY_PATTERN, LABELS_MAX
from mint_contracts.training import JSON_LINES, PARQUET
from mint_operator.observing import train_manifest
from mint_operator.observing.train_bounds import bounded
from mint_operator.planning import wave_status
from mint_operator.planning.lookup import MOST_ADAPTERS
from mint_operator.training import gang
from tests.crds.schemas import Schema, definition, rules, schema, walk

PARTS = [
    ("BaseModel", "spec", resources.BaseModelSpec),
    ("BaseModel", "status", resources.BaseModelStatus),
    ("AdapterWave", "spec", resources.AdapterWaveSpec),
    ("AdapterWave", "status", resources.AdapterWaveStatus),
]
SCALARS: dict[Any, str] = {int: "integer", str: "string", bool: "boolean", float: "number"}


def differences(declared: Any, node: Schema, path: str, above: tuple[Any, ...] = ()) -> list[str]:
    """Return the differences between a type of the structs and a schema node; empty if they agree.

    A schema cannot refer to itself: in a recursive struct, the schema of the inner one lacks the recursive fields.
    `above` are the structs around this one.
    """
    declared = _without_none(declared)
    if get_origin(declared) is Literal:
        return _unequal(path, "enum", list(get_args(declared)), node.get("enum")) + _type(path, "string", node)
    if set(get_args(declared)) == {str, int}:
        return _unequal(path, "x-kubernetes-int-or-string", True, node.get("x-kubernetes-int-or-string"))
    if get_origin(declared) in {list, tuple}:
        return _type(path, "array", node) + differences(
            get_args(declared)[0], node.get("items", {}), f"{path}[]", above
        )
    if declared == dict[str, Any]:  # a type of Kubernetes, passed on unchanged
        return _type(path, "object", node)
    if declared == dict[str, bool | int | float | str]:
        name = "x-kubernetes-preserve-unknown-fields"  # structural schemas allow no union of types
        return _type(path, "object", node) + _unequal(path, name, True, node.get(name))
    if get_origin(declared) is dict:
        values = node.get("additionalProperties", {})
        return _type(path, "object", node) + differences(get_args(declared)[1], values, f"{path}{{}}", above)
    if isinstance(declared, type) and issubclass(declared, msgspec.Struct):
        return _type(path, "object", node) + _fields(declared, node, path, above)
    return _type(path, SCALARS[declared], node)


def _fields(struct: type[msgspec.Struct], node: Schema, path: str, above: tuple[Any, ...]) -> list[str]:
    types = get_type_hints(struct)
    fields = {
        field.encode_name: field
        for field in msgspec.structs.fields(struct)
        if struct not in above or not set(get_args(types[field.name])) & set(above)
    }
    found = _unequal(path, "fields", sorted(fields), sorted(node.get("properties", {})))
    required = sorted(name for name, field in fields.items() if field.required)
    found += _unequal(path, "required", required, sorted(node.get("required", [])))
    for name in fields.keys() & node.get("properties", {}).keys():
        child = node["properties"][name]
        found += differences(types[fields[name].name], child, f"{path}.{name}", (*above, struct))
        found += _default(fields[name], types[fields[name].name], child, f"{path}.{name}")
    return found


def _default(field: msgspec.structs.FieldInfo, declared: Any, node: Schema, path: str) -> list[str]:
    """Return complaints if a struct's default and the schema's differ.

    An empty default may be an absent field, as may generation 0, which no object has; any other default must be in
    the schema. A struct whose fields are all empty may be either.
    """
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    empty = value in (None, "", [], {}, ()) or (field.name == "observed_generation" and value == 0)
    if isinstance(value, msgspec.Struct) and "default" not in node:
        empty = not any(msgspec.to_builtins(value, builtin_types=()).values())
    if field.required or empty:
        return [f"{path}: default {node['default']!r} is not the struct's"] if "default" in node else []
    if "default" not in node:
        return [f"{path}: lacks the struct's default {value!r}"]
    return _unequal(path, "default", value, msgspec.convert(node["default"], declared))


def _without_none(declared: Any) -> Any:
    members = get_args(declared) if get_origin(declared) in {Union, UnionType} else ()
    if NoneType not in members:
        return declared
    (only,) = (member for member in members if member is not NoneType)
    return only


def _type(path: str, wanted: str, node: Schema) -> list[str]:
    return _unequal(path, "type", wanted, node.get("type"))


def _unequal(path: str, what: str, struct: Any, crd: Any) -> list[str]:
    return [] if struct == crd else [f"{path}: {what} is {struct!r} in the struct, {crd!r} in the CRD"]


@pytest.mark.parametrize(("kind", "part", "struct"), PARTS)
def test_structs_and_schemas_are_equal(kind: str, part: str, struct: type[msgspec.Struct]) -> None:
    assert differences(struct, schema(kind)["properties"][part], f".{part}") == []


def test_durations_are_written_alike() -> None:
    """The API server accepts exactly the durations that the operator reads."""
    written = f"self.matches('{durations.PATTERN}')"
    crd_rules = rules("AdapterWave")
    assert crd_rules["is not a valid duration; use for example 45s, 15m, 1h30m or 7d"] == f"self != '' && {written}"
    assert crd_rules["must be from 1s to a year (365d or 8760h)"].startswith(f"self == '' || !{written} || (")


class Renamed(msgspec.Struct, rename="camel"):
    """A struct that differs from the schemas below in every way at once."""

    wanted_name: int
    level: Literal["a", "b"] = "a"
    count: int = 3


@pytest.mark.parametrize(
    ("node", "complaint"),
    [
        ({"properties": {}}, ": fields is"),
        ({"properties": {"wantedName": {"type": "string"}}}, ".wantedName: type is 'integer'"),
        ({"properties": {"wantedName": {"type": "integer"}}}, ": required is ['wantedName']"),
        ({"properties": {"level": {"type": "string", "enum": ["a"]}}}, ".level: enum is"),
        ({"properties": {"count": {"type": "integer"}}}, ".count: lacks the struct's default 3"),
        ({"properties": {"count": {"type": "integer", "default": 4}}}, ".count: default is 3"),
        ({"properties": {"wantedName": {"type": "integer", "default": 1}}}, ".wantedName: default 1 is not"),
    ],
)
def test_every_kind_of_difference_is_noticed(node: Schema, complaint: str) -> None:
    assert any(complaint in found for found in differences(Renamed, {"type": "object", **node}, ""))


def test_group_and_version_are_the_structs() -> None:
    for kind in ("BaseModel", "AdapterWave"):
        spec = definition(kind)["spec"]
        assert spec["group"] == resources.GROUP
        assert [entry["name"] for entry in spec["versions"]] == [resources.VERSION]


# Fields of a manifest's policy that are not bounded: names and targets are checked where they are looked up, a
# ConfigMap is refused, and lines may come from a ConfigMap, which does not bound them.
UNBOUNDED = {".name", ".startFrom", ".targetModules", ".targetModules[]", ".dataset.lines", ".dataset.lines[]"}
LAST = {r"^[A-Za-z0-9.-]+:[0-9]{1,5}$": ":1"}  # the last characters of texts that match


def test_a_policy_of_a_manifest_obeys_the_bounds_of_one_in_a_list() -> None:
    """No API server checks a manifest, so the operator itself refuses what an API server would refuse in a list."""
    train = schema("AdapterWave")["properties"]["spec"]["properties"]["train"]["properties"]
    policy = train["policies"]["properties"]["list"]["items"]
    tried = set()
    for path, given, taken in _at_bounds(policy):
        if path not in UNBOUNDED and not path.startswith(".dataset.configMap"):
            assert _is_read({"name": "a"} | given) is taken, (path, given)
            tried.add(path)
    numbers = {".rank", ".seed", ".loss.clipLow", ".optimizer.beta2", ".reward.sum[].weight"}
    assert numbers | {".reward.service.address", ".reward.sum[].reward.service.retries", ".dataset.uri"} < tried


def _at_bounds(node: Schema, path: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Yield values at and beyond the bounds of a schema node and its children, and whether they are accepted."""
    yield from ((path, *each) for each in _own_bounds(node))
    required = {name: _least(node["properties"][name]) for name in node.get("required", [])}
    for name, child in node.get("properties", {}).items():
        for inner, value, taken in _at_bounds(child, f"{path}.{name}"):
            yield inner, required | {name: value}, taken
    for inner, value, taken in _at_bounds(node["items"], f"{path}[]") if "items" in node else ():
        yield inner, [value], taken


def _own_bounds(node: Schema) -> Iterator[tuple[Any, bool]]:
    if "maximum" in node:
        low, high = node["minimum"], node["maximum"]
        yield from ((low, "exclusiveMinimum" not in node), (high, True), (low - 1, False), (high + 1, False))
    if "maxLength" in node:
        least, most = node.get("minLength", 0), node["maxLength"]
        yield from ((_text(node, least), True), (_text(node, most), True), (_text(node, most + 1), False))
        yield from [(_text(node, least)[1:], False)] * bool(least)
        yield from [("no such", False), (_text(node, least) + "\n", False)] * ("pattern" in node)
    if "maxItems" in node:
        yield from (([_least(node["items"])] * (node["maxItems"] + more), not more) for more in (0, 1))


def _text(node: Schema, length: int) -> str:
    last = LAST.get(node.get("pattern", ""), "")
    return "x" * (length - len(last)) + last


def _least(node: Schema) -> Any:
    """Return the smallest value that a schema node accepts."""
    if node["type"] == "string":
        return _text(node, node.get("minLength", 0))
    if "minimum" in node:
        return node["minimum"]
    return {name: _least(node["properties"][name]) for name in node.get("required", [])}


def _is_read(given: dict[str, Any]) -> bool:
    try:
        bounded(msgspec.json.encode(given))
    except msgspec.ValidationError:
        return False
    return True


def test_names_of_adapters_obey_the_same_pattern() -> None:
    assert f"self.matches('{names.ADAPTER_PATTERN}')" in rules("AdapterWave").values()
    adapters = schema("AdapterWave")["properties"]["spec"]["properties"]["adapters"]["properties"]
    shorter = names.ADAPTER_PATTERN.replace("[A-Za-z0-9._-]", r"[\w.-]").removesuffix("$") + "(@|$)"
    revision = names.REVISION_PATTERN.removeprefix("^").removesuffix("$")
    assert f"self.matches(r'{shorter}')" in rules("AdapterWave").values()
    assert f"self.matches('^[^@]*(@{revision})?$')" in rules("AdapterWave").values()
    assert f"self.matches('^[^@]{{0,{names.ADAPTER_MAX_LENGTH}}}(@|$)')" in rules("AdapterWave").values()
    assert adapters["names"]["items"]["maxLength"] == names.ADAPTER_MAX_LENGTH + len("@sha256:") + 64
    failures = schema("AdapterWave")["properties"]["status"]["properties"]["failures"]["items"]["properties"]
    assert failures["adapter"]["maxLength"] == adapters["names"]["items"]["maxLength"], "what may fail can be told"
    assert adapters["selector"]["properties"]["labels"]["maxProperties"] == LABELS_MAX
    assert f"self.all(key, key.matches('{LABEL_KEY_PATTERN}'))" in rules("AdapterWave").values()
    assert adapters["sources"]["items"]["properties"]["name"]["maxLength"] == names.ADAPTER_MAX_LENGTH


def test_the_operator_has_the_limits_of_the_crds() -> None:
    spec, status = (schema("AdapterWave")["properties"][part]["properties"] for part in ("spec", "status"))
    policies = spec["train"]["properties"]["policies"]["properties"]
    assert spec["adapters"]["properties"]["names"]["maxItems"] == MOST_ADAPTERS
    assert policies["count"]["maximum"] == train_manifest.MOST_POLICIES
    assert policies["list"]["maxItems"] == gang.MOST_POLICIES
    assert any(str([*JSON_LINES, PARQUET]) in rule for rule in rules("AdapterWave").values())
    assert status["failures"]["maxItems"] == wave_status.MOST_FAILURES
    assert status["failures"]["items"]["properties"]["message"]["maxLength"] == wave_status.FAILURE_MESSAGE_LENGTH


@pytest.mark.parametrize("kind", ["BaseModel", "AdapterWave"])
def test_every_field_is_described_in_sentences(kind: str) -> None:
    described = {path: node.get("description", "") for path, node in walk(schema(kind))}
    assert [path for path, text in described.items() if not text.endswith(".") or not text[0].isupper()] == []


SANITY = 1_000_000  # a maximum from here on only keeps out what nobody means


@pytest.mark.parametrize("kind", ["BaseModel", "AdapterWave"])
def test_descriptions_say_defaults_and_bounds(kind: str) -> None:
    """`kubectl explain` shows nothing else of a field but its type and the values of an enum."""
    for path, node in walk(schema(kind)["properties"]["spec"], ".spec"):
        text, default, least = node["description"], node.get("default"), node.get("minimum", 0)
        if default is not None and not isinstance(default, dict | list):
            [told] = re.findall(r"efaults to (\S+)\.$", text) or [None]
            assert told is not None, path
            assert told == default or yaml.safe_load(told) == default or float(told) == default, path
        if node.get("maximum", SANITY) < SANITY:
            bounds = "bove {}, up to {}" if "exclusiveMinimum" in node else "rom {} to {}"
            assert bounds.format(least, node["maximum"]) in text, path
        elif least > 0:
            assert f"t least {least}" in text, path


@pytest.mark.parametrize("kind", ["BaseModel", "AdapterWave"])
def test_every_field_of_the_spec_is_bounded(kind: str) -> None:
    unbounded = [path for path, node in walk(schema(kind)["properties"]["spec"], ".spec") if not _bounded(node)]
    assert unbounded == [".spec.engine.tolerations[].tolerationSeconds"] * (kind == "BaseModel")


def _bounded(node: Schema) -> bool:
    if node.get("x-kubernetes-int-or-string"):
        return "maxLength" in node
    bounds = {
        "string": {"maxLength", "enum"},
        "integer": {"maximum"},
        "number": {"maximum"},
        "array": {"maxItems"},
        "object": {"properties", "maxProperties"},
    }
    return node["type"] == "boolean" or bool(bounds[node["type"]] & node.keys())


@pytest.mark.parametrize("kind", ["BaseModel", "AdapterWave"])
def test_every_list_says_how_it_merges(kind: str) -> None:
    lists = {path: node for path, node in walk(schema(kind)) if node.get("type") == "array"}
    assert [path for path, node in lists.items() if "x-kubernetes-list-type" not in node] == []

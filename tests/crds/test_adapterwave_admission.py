"""What the API server accepts and refuses as an AdapterWave, and that each refusal says what to do."""

import itertools
from typing import Any

import msgspec
import pytest

from mint_contracts.resources import AdapterWaveSpec, BaseModelRef, WaveAdapters
from tests.apiserver import ApiServer, KubectlError
from tests.crds.admission import Admission, merged, resource
from tests.crds.schemas import rules, schema
from tests.crds.training_waves import SHOWN
from tests.crds.training_waves import SMALLEST as SMALLEST_TRAINING

NUMBERS = itertools.count()
SMALLEST: dict[str, Any] = {"baseModelRef": {"name": "smollm2"}, "adapters": {"names": ["acme/support-7"]}}
SOURCE = {"name": "acme/support-7", "uri": "pvc://more/support-7"}


def names(*given: str) -> dict[str, Any]:
    return {"adapters": {"names": list(given)}}


def sources(*given: dict[str, Any]) -> dict[str, Any]:
    return {"adapters": {"names": None, "sources": list(given)}}


def source(**fields: Any) -> dict[str, Any]:
    return sources(SOURCE | fields)


def selector(**fields: Any) -> dict[str, Any]:
    return {"adapters": {"names": None, "selector": fields}}


def manifest(uri: str) -> dict[str, Any]:
    return {"adapters": {"names": None, "manifest": uri}}


ACCEPTED = [
    {},
    names("acme/support-7@sha256:0f", "acme/support-7", "a@v1.2+build/3"),
    selector(prefix="acme/support-"),
    selector(labels={"team": "support", "example.org/tier": ""}),
    selector(prefix="acme", labels={"team": "support"}),
    manifest("s3://bucket/waves/demo.jsonl"),
    manifest("https://host:8443/demo.parquet"),
    names("a", "A.b_c-9/d/e/f"),
    names("x" * 200, "x" * 200 + "@sha256:" + "0" * 64, "x@" + "r" * 128),
    names(*(f"acme/{number}" for number in range(4096))),
    sources(SOURCE),
    sources(SOURCE, SOURCE | {"name": "acme/other"}),
    sources(*(SOURCE | {"name": f"acme/{number}"} for number in range(1024))),
    source(uri="hf://acme/support-7", revision="9f3c2ab"),
    {"serve": {"replicas": 2, "residency": "Host"}},
    {"serve": {"replicas": 1000, "residency": "Disk"}},
    {"serve": {"engines": [3]}},
    {"serve": {"engines": [0, 2], "replicas": 2}},
    {"serve": {"engines": [], "replicas": 2}},
    *({"serve": {"ttl": ttl}} for ttl in ("1s", "15m", "1h30m", "26h15m30s", "0h90s", "8760h", "1d", "365d")),
    {"priority": 1000000},
    {"priority": -1000000},
]

BY_RULE: list[tuple[dict[str, Any], str]] = [
    ({"adapters": {"names": None}}, "set exactly one of names"),
    ({"adapters": {"sources": [SOURCE]}}, "set exactly one of names"),
    ({"adapters": {"selector": {"prefix": "acme/"}}}, "set exactly one of names"),
    (selector(labels={"team": "a", "two words": "x"}), "has an invalid label; use up to 63"),
    (merged(selector(prefix="acme/"), manifest("s3://bucket/x")), "set exactly one of names"),
    (manifest("pvc://claim/x.jsonl"), "manifest must begin with s3://"),
    (manifest("https://user:word@host/x"), "manifest must be a plain URI"),
    (manifest("s3://bucket/../x"), "manifest must be a plain URI"),
    (names("acme/support-7@"), "has an invalid revision; use NAME or NAME@REVISION"),
    (names("acme/support-7@../x"), "has an invalid revision; use NAME or NAME@REVISION"),
    (names("acme/support-7@a@b"), "has an invalid revision; use NAME or NAME@REVISION"),
    (names("acme/support-7@" + "r" * 129), "has an invalid revision; use NAME or NAME@REVISION"),
    (names("x" * 201), "an adapter's name has at most 200 characters"),
    (names("x" * 201 + "@sha256:0f"), "an adapter's name has at most 200 characters"),
    (names("@sha256:0f"), "is not a valid adapter name"),
    (names("../secret"), "is not a valid adapter name"),
    (names("a/b/c/d/e"), "is not a valid adapter name"),
    (names("two words"), "is not a valid adapter name"),
    (names("acme/"), "is not a valid adapter name"),
    (names("-acme"), "is not a valid adapter name"),
    (source(name="acme//x"), "is not a valid adapter name"),
    (source(uri="hf://acme/support-7"), "an hf:// source needs a revision"),
    (source(uri="ssh://host/x"), "uri must begin with file://"),
    (source(uri="https://user:word@host/x"), "uri must carry no credentials"),
    (source(uri="https://host/x?key=1"), "uri must carry no credentials"),
    (source(uri="pvc://more/../x"), "uri must be a plain path"),
    (source(uri="file://relative/x"), "a file source must be absolute"),
    (source(uri="gs:///x"), "uri must name a bucket"),
    (source(uri="pvc://More/x"), "a pvc source must name a PersistentVolumeClaim"),
    ({"serve": {"engines": [0], "replicas": 2}}, "each copy of an adapter needs its own engine"),
    *(({"serve": {"ttl": ttl}}, "must be from 1s to a year") for ttl in ("0s", "0d", "366d", "8760h1s", "999999m")),
]

NO_TIMES = ("", "1", "90", "soon", "-1s", "1w", "1H", "1.5h", "10ms", "1d12h", "1000d", "1m1h")
BY_RULE += [
    ({"serve": {"ttl": ttl}}, "is not a valid duration; use for example 45s, 15m, 1h30m or 7d") for ttl in NO_TIMES
]

BY_SCHEMA: list[tuple[dict[str, Any], str]] = [
    ({"baseModelRef": None}, "spec.baseModelRef: Required value"),
    ({"baseModelRef": {"name": "Not A Name"}}, "spec.baseModelRef.name"),
    (names(), "spec.adapters.names: Invalid value"),
    (sources(), "spec.adapters.sources: Invalid value"),
    (names("a", "b", "a"), "spec.adapters.names[2]: Duplicate value"),
    (sources(SOURCE, SOURCE), "spec.adapters.sources[1]: Duplicate value"),
    (names("x" * 273), "spec.adapters.names[0]: Too long"),
    (selector(), "spec.adapters.selector"),
    (selector(prefix="/acme"), "spec.adapters.selector.prefix"),
    (selector(labels={}), "spec.adapters.selector.labels"),
    (selector(labels={"team": "two words"}), "spec.adapters.selector.labels"),
    (selector(suffix="x"), 'unknown field "spec.adapters.selector.suffix"'),
    (names(*(f"acme/{number}" for number in range(4097))), "spec.adapters.names: Too many"),
    (source(uri=None), "spec.adapters.sources[0].uri"),
    ({"serve": {"replicas": 0}}, "spec.serve.replicas"),
    ({"serve": {"residency": "Remote"}}, 'supported values: "Device", "Host", "Disk"'),
    *(({"serve": {"ttl": ttl}}, "spec.serve.ttl") for ttl in ("1h" * 9, 3600)),
    ({"priority": 1000001}, "spec.priority"),
    ({"wanted": {}}, 'unknown field "spec.wanted"'),
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=lambda changes: repr(changes)[:80])
def test_accepted(admission: Admission, changes: dict[str, Any]) -> None:
    assert admission.refusal(resource("AdapterWave", merged(SMALLEST, changes))) == ""


@pytest.mark.parametrize(("changes", "why"), BY_RULE + BY_SCHEMA, ids=lambda part: repr(part)[:80])
def test_refused(admission: Admission, changes: dict[str, Any], why: str) -> None:
    assert why in admission.refusal(resource("AdapterWave", merged(SMALLEST, changes)))


@pytest.mark.parametrize("ttl", [*NO_TIMES, "0s", "366d"])
def test_an_invalid_duration_gets_exactly_one_clear_error(admission: Admission, ttl: str) -> None:
    message = admission.refusal(resource("AdapterWave", merged(SMALLEST, {"serve": {"ttl": ttl}})))
    assert message.count("spec.serve.ttl") == 1
    assert message.endswith(
        ("is not a valid duration; use for example 45s, 15m, 1h30m or 7d", "from 1s to a year (365d or 8760h)")
    )


@pytest.fixture
def stored(api_server: ApiServer) -> str:
    """Store a wave; return its namespace."""
    namespace = api_server.namespace(f"wave-{next(NUMBERS)}")
    text = msgspec.json.encode(resource("AdapterWave", SMALLEST)).decode()
    api_server.kubectl("apply", "-n", namespace, "-f", "-", stdin=text)
    return namespace


def test_more_names_than_an_annotation_holds_are_applied_as_their_description_says(api_server: ApiServer) -> None:
    adapters = schema("AdapterWave")["properties"]["spec"]["properties"]["adapters"]["properties"]
    advice = (
        "Above about 250 kB of names apply the wave with --server-side; above about 700 kB no API server accepts it"
    )
    assert advice in adapters["names"]["description"]
    namespace = api_server.namespace(f"long-{next(NUMBERS)}")

    def apply(length: int, *options: str) -> None:
        given = names(*(f"{number:04}-{'x' * (length - 5)}" for number in range(4096)))
        wave = resource("AdapterWave", merged(SMALLEST, given), f"of-{length}")
        api_server.kubectl("apply", *options, "-n", namespace, "-f", "-", stdin=msgspec.json.encode(wave).decode())

    apply(58)  # 238 kB
    with pytest.raises(KubectlError, match=r"metadata\.annotations: Too long"):
        apply(66)
    with pytest.raises(KubectlError, match="request is too large"):
        apply(190, "--server-side")
    apply(165, "--server-side")  # 676 kB


IMMUTABLE = "a wave cannot move to another base model"


def refer(api_server: ApiServer, namespace: str, change: dict[str, Any]) -> None:
    patch = msgspec.json.encode({"spec": {"baseModelRef": change}}).decode()
    api_server.kubectl("patch", "-n", namespace, "aw/sample", "--type=merge", "-p", patch)


@pytest.mark.parametrize("change", [{"name": "other"}, {"namespace": "models"}], ids=repr)
def test_a_wave_stays_with_its_base(api_server: ApiServer, stored: str, change: dict[str, Any]) -> None:
    with pytest.raises(KubectlError, match=IMMUTABLE):
        refer(api_server, stored, change)
    refer(api_server, stored, {"namespace": ""})  # means the same


@pytest.mark.parametrize("change", [{"namespace": "other"}, {"namespace": None}], ids=repr)
def test_a_wave_stays_with_a_base_of_another_namespace(
    api_server: ApiServer, stored: str, change: dict[str, Any]
) -> None:
    elsewhere = merged(SMALLEST, {"baseModelRef": {"namespace": "models"}})
    text = msgspec.json.encode(resource("AdapterWave", elsewhere)).decode()
    api_server.kubectl("replace", "--force", "-n", stored, "-f", "-", stdin=text)
    with pytest.raises(KubectlError, match=IMMUTABLE):
        refer(api_server, stored, change)


def test_every_other_field_of_a_wave_may_change(api_server: ApiServer, stored: str) -> None:
    change = {"adapters": {"names": None, "sources": [SOURCE]}, "serve": {"replicas": 2}, "priority": 7}
    patch = msgspec.json.encode({"spec": change}).decode()
    api_server.kubectl("patch", "-n", stored, "aw/sample", "--type=merge", "-p", patch)
    assert api_server.kubectl("get", "-n", stored, "aw/sample", "-o", "jsonpath={.spec.priority}") == "7"


TRAINS = "a training wave cannot have a ttl"


def test_a_wave_that_trains_has_no_ttl(admission: Admission) -> None:
    spec = merged(SMALLEST_TRAINING, {"serve": {"ttl": "1h"}})
    assert TRAINS in admission.refusal(resource("AdapterWave", spec))


def test_every_rule_is_shown_above() -> None:
    shown = [why for _, why in BY_RULE] + [IMMUTABLE, TRAINS] + SHOWN
    assert [message for message in rules("AdapterWave") if not any(message.startswith(why) for why in shown)] == []


def test_defaults_are_those_of_the_struct(admission: Admission) -> None:
    stored = admission.created(resource("AdapterWave", SMALLEST))["spec"]
    expected = AdapterWaveSpec(
        base_model_ref=BaseModelRef(name="smollm2"), adapters=WaveAdapters(names=["acme/support-7"])
    )
    assert msgspec.convert(stored, AdapterWaveSpec) == expected


def test_columns_tell_the_state_at_a_glance(api_server: ApiServer, stored: str) -> None:
    counts = {"adapters": 3, "wanted": 3, "ready": 2, "device": 2, "host": 1}
    status = {"phase": "Placing", "counts": counts, "summary": "2/3", "eta": "31s"}
    patch = msgspec.json.encode({"status": status}).decode()
    api_server.kubectl("patch", "-n", stored, "aw/sample", "--subresource=status", "--type=merge", "-p", patch)
    header, row = api_server.kubectl("get", "-n", stored, "aw").splitlines()
    assert header.split() == [
        "NAME",
        "BASE",
        "PHASE",
        "ADAPTERS",
        "READY",
        "DEVICE",
        "HOST",
        "DISK",
        "STEP",
        "REWARD",
        "ETA",
        "AGE",
    ]
    assert row.split()[:-1] == ["sample", "smollm2", "Placing", "3", "2/3", "2", "1", "0", "31s"]


def test_the_wide_columns_tell_how_long_a_wave_is_wanted(api_server: ApiServer, stored: str) -> None:
    api_server.kubectl(
        "patch", "-n", stored, "aw/sample", "--type=merge", "-p", '{"spec": {"serve": {"ttl": "90m"}}}'
    )
    header, row = api_server.kubectl("get", "-n", stored, "aw", "-o", "wide").splitlines()
    assert row[header.index("TTL") :].split()[0] == "90m"


def test_waves_are_found_by_their_base(api_server: ApiServer, stored: str) -> None:
    found = api_server.kubectl(
        "get", "-n", stored, "aw", "-o", "name", "--field-selector=spec.baseModelRef.name=smollm2"
    )
    assert found.split() == ["adapterwave.mint.dev/sample"]
    assert (
        api_server.kubectl("get", "-n", stored, "aw", "-o", "name", "--field-selector=spec.baseModelRef.name=x") == ""
    )

"""Admission never accepts a URI that the operator and the engines would refuse."""

from contextlib import suppress

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mint_contracts.errors import SourceForbidden
from mint_contracts.source import SCHEMES, Source, locate
from tests.crds.admission import Admission, resource
from tests.crds.schemas import schema

PIECES = [
    "models",
    "a.b",
    "x_y",
    ".",
    "..",
    "%2e",
    "@",
    ":",
    "?",
    "#",
    "/",
    "//",
    "\\",
    " ",
    "[",
    "]",
    "8080",
    "é",
    "\t",
]
URIS = st.builds(
    lambda scheme, pieces: scheme + "".join(pieces),
    st.sampled_from([*(f"{scheme}://" for scheme in SCHEMES), "file:///", "ftp://", "HF://", "s3:/", ""]),
    st.lists(st.sampled_from(PIECES), max_size=6),
)


@example("file:///models/smollm2")
@example("https://host:8443/adapters")
@example("s3://bucket")
@example("http://[::1]/x")
@given(URIS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_uri_that_admission_accepts_can_be_located(admission: Admission, uri: str) -> None:
    source = {"uri": uri, "revision": "v1"}
    if admission.refusal(resource("BaseModel", {"source": source})) == "":
        locate(Source(uri=uri, revision="v1"))  # raises SourceForbidden if the rules were too lax


@given(URIS)
@settings(max_examples=300)
def test_locating_any_text_gives_a_place_or_a_refusal(uri: str) -> None:
    with suppress(SourceForbidden):
        assert locate(Source(uri=uri, revision="v1")).scheme in SCHEMES


def test_all_uri_fields_have_the_same_rules() -> None:
    base = schema("BaseModel")["properties"]["spec"]["properties"]
    store = base["adapters"]["properties"]["store"]
    wave = schema("AdapterWave")["properties"]["spec"]["properties"]["adapters"]["properties"]["sources"]["items"]
    rules = [
        (node["x-kubernetes-validations"], node["properties"]["uri"]["x-kubernetes-validations"])
        for node in (base["source"], store, wave)
    ]
    assert rules[0] == rules[1] == rules[2]
    train = schema("AdapterWave")["properties"]["spec"]["properties"]["train"]["properties"]
    places = [
        base["training"]["properties"]["store"]["properties"]["uri"],
        base["catalog"]["properties"]["manifests"]["properties"]["uri"],
        train["dataset"]["properties"]["uri"],
    ]
    assert [place["x-kubernetes-validations"] for place in places] == [rules[0][1]] * 3

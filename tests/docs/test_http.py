"""Tables of the APIs are those of the code: endpoints and services, parameters, and what is ignored or rejected."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from google.protobuf import descriptor_pool

from mint_contracts.transport import MOST_STOPS, MOST_TOOL_CHARACTERS
from mint_engine.requests.parameters import (
    DEFAULT_MAX_TOKENS,
    HOTTEST,
    LARGEST_BIAS,
    LARGEST_PENALTY,
    LARGEST_REPETITION,
    LONGEST_STOP,
    MOST_BIASES,
    MOST_COMPLETIONS,
    MOST_LOGPROBS,
)
from mint_gateway.answering import REQUEST_ID_MAX_LENGTH
from mint_gateway.http import models
from mint_gateway.http.door import BODY_S, MOST_BYTES, Door
from mint_gateway.http.openai_request import MOST_PROMPTS, NOT_DONE, PASSED_OVER, ChatRequest, TextRequest, read
from mint_gateway.page.answers import Page
from mint_gateway.page.files import FILES
from mint_gateway.page.overview import Overview
from mint_gateway.server import SERVICES, Limits
from tests.apiserver import ROOT
from tests.docs.pages import parts, rows

PAGE = (ROOT / "docs" / "http.md").read_text()
PARTS = parts(PAGE)
OF = {"both": {"chats", "texts"}, "chats": {"chats"}, "texts": {"texts"}}
KINDS: dict[str, type[msgspec.Struct]] = {"chats": ChatRequest, "texts": TextRequest}


def test_the_endpoints_are_the_doors() -> None:
    none: Any = None  # of what answers, which no route asks for here
    page = Page(Overview(none, none, none), none, none, none, none, none)
    door = Door(none, none, none, none, none, none, page)
    routes = set()
    for route in door.application().router.routes():
        if isinstance(route.resource, web.Resource) and route.method != "HEAD":
            routes.add((route.method, route.resource.canonical))
    told = {("GET", path) for path in FILES}
    for endpoint, text in rows(PARTS["Endpoints"]):
        method, path = endpoint.strip("`").split()
        ends = re.findall(r"`([a-z/]+)`", text) if path.endswith("…") else [""]
        named = {(method, path.replace("…", end).replace("NAME", "{model}")) for end in ends}
        told |= named & routes if path.endswith("…") else named
    assert told == routes


def test_the_services_over_grpc_are_the_gateways_with_all_of_their_calls() -> None:
    page = (ROOT / "docs" / "using.md").read_text()
    found = re.findall(r"^\| `(mint\.v1\.\w+)` \| \[(\w+\.proto)\].*?\|(.*)\|$", page, re.MULTILINE)
    told = {name: (file, set(re.findall(r"`(\w+)`", calls))) for name, file, calls in found}
    known = {}
    for name in SERVICES:
        service = descriptor_pool.Default().FindServiceByName(name)
        known[name] = (Path(service.file.name).name, {method.name for method in service.methods})
    assert told == known


def test_every_parameter_has_its_row_and_its_default() -> None:
    told: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for name, of, default, _ in rows(PARTS["Parameters"]):
        for kind in OF[of]:
            told[kind][name.strip("`")] = default
    for kind, struct in KINDS.items():
        fields = {field.name: field for field in msgspec.structs.fields(struct)}
        ignored = {"parallel_tool_calls"} if kind == "texts" else set()
        assert told[kind].keys() - ignored == fields.keys() - ignored
        for name, default in told[kind].items():
            assert (default == "required") == fields[name].required, name
            if re.fullmatch(r"[\d.]+|true|false", default):
                assert fields[name].default == json.loads(default), name


def test_what_is_ignored_is_named() -> None:
    assert set(re.findall(r"`(\w+)`", PARTS["Parameters that are ignored"])) == PASSED_OVER - {"parallel_tool_calls"}
    assert read(b'{"model": "a", "prompt": "b", "parallel_tool_calls": false}', TextRequest).model == "a"


def test_what_is_rejected_is_named_with_the_values_that_ask_for_nothing() -> None:
    told = {}
    for name, accepted in rows(PARTS["Parameters that are rejected"]):
        values = re.findall(r"`([^`]*)`", accepted) or [each for each in [accepted] if each]
        told[re.findall(r"`(\w+)`", name)[0]] = tuple(json.loads(each) for each in values)
    assert told == NOT_DONE


def test_limits_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    for words in (
        f"at most {MOST_BYTES >> 20} MiB, and must arrive within {BODY_S:g} seconds",
        f"list of up to {MOST_PROMPTS} of these",
        f"a text has at most {DEFAULT_MAX_TOKENS} tokens",
        f"from 0 (greedy) to {HOTTEST:g}",
        f"at most {MOST_COMPLETIONS}; they draw",
        f"up to {MOST_STOPS}, each of at most {LONGEST_STOP} characters",
        f"up to {MOST_BIASES} token IDs with -{LARGEST_BIAS:g} to {LARGEST_BIAS:g}",
        f"from -{LARGEST_PENALTY:g} to {LARGEST_PENALTY:g}",
        f"to {LARGEST_REPETITION:g} |",
        f"from 0 to {MOST_LOGPROBS} |",
        f"at most {MOST_TOOL_CHARACTERS:,} characters",
        f"({models.DEFAULT:,}; from 1 to {models.MOST:,})",
        f"of up to {REQUEST_ID_MAX_LENGTH} printable characters",
        f"at most {Limits().requests:,} requests in flight",
    ):
        assert words in text

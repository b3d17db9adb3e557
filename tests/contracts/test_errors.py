"""The error tree: its drawing is accurate, every leaf is mapped once, and classes are found by their reason."""

import re

import grpc
import pytest

from mint_contracts import errors
from tests.contracts.error_tree import EVERY, tree

LEAVES = [kind for kind in EVERY if not kind.__subclasses__()]


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^\s{4}([│ ├└─]*)([A-Z]\w+)", line):
            drawn.append((len(match.group(1)) // 4, match.group(2)))
    assert drawn == [(depth, kind.__name__) for depth, kind in tree(errors.MintError)]


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_is_mapped_to_grpc_and_http(kind: type[errors.MintError]) -> None:
    assert kind.grpc_status not in {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN}
    assert 400 <= kind.http_status < 600
    assert kind.__doc__


def test_clients_retry_exactly_the_transient_errors() -> None:
    passing = {kind for kind in EVERY if not kind.terminal}
    assert passing == {
        *(errors.Overloaded, errors.Unavailable, errors.SourceUnavailable, errors.EngineUnavailable),
        *(errors.Draining, errors.MapUnavailable, errors.RewardUnavailable),
    }
    assert {kind.grpc_status for kind in passing} == {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_every_class_is_found_by_its_reason(kind: type[errors.MintError]) -> None:
    assert errors.by_reason(kind("x", "y").reason) is kind


def test_an_unknown_reason_is_nothing() -> None:
    assert errors.by_reason("OutOfCheese") is None


def test_a_message_names_the_object_first() -> None:
    assert str(errors.AdapterNotFound("adapter 'a/b'", "no wave serves it")) == "adapter 'a/b': no wave serves it"
    assert str(errors.Internal("", "a defect")) == "a defect"


def test_characters_that_are_not_text_are_replaced_so_that_every_error_can_be_sent() -> None:
    error = errors.UnsupportedAdapter("adapter '\udfff'", "sets \ud800 to 1: é, 模型 and 😀 stay")
    assert (error.subject, error.message) == ("adapter '?'", "sets ? to 1: é, 模型 and 😀 stay")
    assert str(error) == f"{error.subject}: {error.message}"
    assert str(error).encode()

"""Names that people choose: an accepted name is always safe, and a refusal says why."""

import posixpath
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mint_contracts.errors import InvalidRequest
from mint_contracts.names import ADAPTER_MAX_LENGTH, ADAPTER_PATTERN, BASE_PATTERN, check_adapter, check_base


@given(st.from_regex(ADAPTER_PATTERN, fullmatch=True).filter(lambda name: len(name) <= ADAPTER_MAX_LENGTH))
def test_names_that_match_the_pattern_are_accepted_unchanged(name: str) -> None:
    assert check_adapter(name.strip("\n")) == name.strip("\n")


@given(st.text(max_size=30) | st.text("abAB09._-/", max_size=30))
@example("..")
@example("a/../b")
@example("a\n")
@example("a//b")
@example("a" * (ADAPTER_MAX_LENGTH + 1))
@example("ä")
def test_accepted_names_are_safe_relative_paths(name: str) -> None:
    try:
        accepted = check_adapter(name)
    except InvalidRequest:
        return
    assert posixpath.normpath(accepted) == accepted
    assert not accepted.startswith(("/", ".", "-"))
    assert 1 <= len(accepted.split("/")) <= 4
    assert re.fullmatch(r"[A-Za-z0-9._/-]+", accepted)


@pytest.mark.parametrize("name", ["a", "acme/support-7", "a/b/c/d", "v1.2_x", "A" * ADAPTER_MAX_LENGTH])
def test_adapter_names_that_are_fine(name: str) -> None:
    assert check_adapter(name) == name


@pytest.mark.parametrize("name", ["", "/a", "a/", "a/b/c/d/e", ".a", "a.", "-a", "a b", "a\n", "a/./b", "Ⅷ", "a\x00"])
def test_adapter_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a valid name"):
        check_adapter(name)


@pytest.mark.parametrize("name", ["demo/smollm2", "a/b", "ns-1/model.v2"])
def test_base_names_that_are_fine(name: str) -> None:
    assert check_base(name) == name


@pytest.mark.parametrize("name", ["", "smollm2", "demo/", "/x", "Demo/x", "a/b/c", "demo/x\n", "demo/{x}", "demo/*"])
def test_base_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="namespace/name"):
        check_base(name)


@given(st.from_regex(BASE_PATTERN, fullmatch=True))
def test_a_base_name_never_breaks_out_of_its_keys_hash_tag(name: str) -> None:
    accepted = check_base(name.strip("\n"))
    assert not set("{}*?[]\\:") & set(accepted)


def test_a_name_that_is_only_too_long_is_told_how_long_it_may_be() -> None:
    with pytest.raises(InvalidRequest, match="200 characters at most"):
        check_adapter("a" * (ADAPTER_MAX_LENGTH + 1))


def test_a_refused_name_is_quoted_in_part_only() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_adapter("x" * 10_000 + "\x1b")
    assert len(str(caught.value)) < 500
    assert "\x1b" not in str(caught.value)

"""Which layers share KV pages, and how many pages a request needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.attention import windows
from mint_contracts.layer_groups import PAGE_TOKENS, first_seen, group_layers, pages_for

GEMMA_27B = ([1024] * 5 + [None]) * 10 + [1024] * 2
GPT_OSS = [128, None] * 18


def test_alike_layers_are_one_group() -> None:
    assert group_layers([None] * 30).windows == (None,)
    assert group_layers([4096] * 32).windows == (4096,)
    assert group_layers([4096] * 32).size == 32


@pytest.mark.parametrize(
    ("layers", "size", "groups"), [(GPT_OSS, 18, (None, 128)), (GEMMA_27B, 10, (None, *[1024] * 6))]
)
def test_groups_are_as_large_as_the_layers_that_see_all(
    layers: list[int | None], size: int, groups: tuple[int | None, ...]
) -> None:
    found = group_layers(layers)
    assert (found.size, found.windows) == (size, groups)


WINDOWS = st.lists(st.sampled_from([None, None, 16, 100]), min_size=1, max_size=80)


@given(WINDOWS)
def test_each_layer_has_a_place_of_its_own_in_a_group_of_its_window(layers: list[int | None]) -> None:
    found = group_layers(layers)
    assert len(set(found.places)) == len(layers)
    assert all(at < found.size for _, at in found.places)
    assert [found.windows[group] for group, _ in found.places] == layers
    assert len(found.windows) <= 8
    assert list(found.windows) == sorted(found.windows, key=lambda window: (window is not None, window))


@given(WINDOWS, st.integers(1, 400), st.integers(1, 64), st.data())
def test_no_request_needs_more_pages_than_are_counted(
    layers: list[int | None], tokens: int, ahead: int, data: st.DataObject
) -> None:
    """This holds for any step of a request, from any position."""
    groups = group_layers(layers)
    computed = data.draw(st.integers(0, tokens - 1))
    end = min(tokens, computed + ahead)
    held = [pages_for(tokens if each is None else end) - first_seen(computed, each) for each in groups.windows]
    assert sum(held) <= groups.pages(tokens, ahead)


@given(st.integers(0, 500), st.integers(1, 100))
def test_pages_are_released_once_no_layer_sees_them(position: int, window: int) -> None:
    first = first_seen(position, window)
    seen = range(max(0, position - window + 1), position + 1)
    assert first == seen.start // PAGE_TOKENS
    assert first_seen(position, None) == 0


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "llama"}, [None, None]),
        ({"model_type": "mistral", "sliding_window": 7}, [7, 7]),
        ({"model_type": "mistral", "sliding_window": None}, [None, None]),
        ({"sliding_window": 7, "layer_types": ["full_attention", "sliding_attention"]}, [None, 7]),
        ({"model_type": "unknown", "sliding_window": 7}, [None, None]),
        ({"model_type": "mistral", "sliding_window": 7, "layer_types": ["sliding_attention"]}, [None, None]),
    ],
)
def test_windows_are_read_from_a_configuration(config: dict[str, object], found: list[int | None]) -> None:
    assert list(windows(config.get, 2)) == found

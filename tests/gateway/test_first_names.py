"""The first of many names: found in one look at each, and without keeping other tasks waiting."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.records import Place, Placement, Tier
from mint_contracts.source import Source
from mint_gateway import first_names as module
from mint_gateway.first_names import first_names
from mint_gateway.security.scope import Scope
from mint_gateway.security.scope_filter import within
from mint_gateway.view import MapView
from tests.gateway.scene import BASE

WORDS = st.text("ab/", min_size=1, max_size=4)


@given(st.lists(st.sets(WORDS), max_size=3), WORDS | st.just(""), WORDS | st.just(""), st.integers(1, 5))
def test_first_names_are_those_of_a_sorted_list(among: list[set[str]], after: str, prefix: str, most: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "PIECE", 2)
        found = asyncio.run(first_names([dict.fromkeys(names) for names in among], after, most, prefix))
    fitting = {name for names in among for name in names if name > after and name.startswith(prefix)}
    assert found == sorted(fitting)[:most]


async def test_others_get_turns_also_while_names_out_of_scope_are_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mint_gateway.time_slices.SLICE_S", -1.0)
    monkeypatch.setattr(module, "PIECE", 10)
    names = [*(f"a/{n}" for n in range(500)), "b/own"]
    placements = {name: Placement(name, Source("s3://a"), (), (Place("e-0", Tier.HOST, ""),)) for name in names}
    views = within({BASE: MapView(BASE, placements=placements)}, Scope(adapters=("b/",)))
    looking, turns = asyncio.create_task(first_names([views[BASE].placements], "", 3)), 0
    while not looking.done():
        await asyncio.sleep(0)
        turns += 1
    assert looking.result() == ["b/own"]
    assert turns > 50

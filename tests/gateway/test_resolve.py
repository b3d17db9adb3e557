"""Which base a name means, decided from the map and the catalogs, never from what engines happen to hold."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.entries import Entry
from mint_contracts.errors import AdapterNotFound, BaseModelNotFound, InvalidRequest, MapUnavailable, MintError
from mint_contracts.records import BaseRecord, Held, Placement, Tier
from mint_contracts.source import Source, child
from mint_gateway.resolve import candidate_bases, choose_base, possible_bases
from mint_gateway.security.scope import Scope
from mint_gateway.security.scope_filter import within
from mint_gateway.view import Engine, MapView
from tests.gateway.scripted import ScriptedEngine

ADAPTER = "team/x"
STORE = Source("s3://store")
REGISTERED, RETIRED = Entry(ADAPTER, "s3://registered"), Entry(ADAPTER, retired=True)


def view(base: str, store: Source | None = None, *, catalog: bool = False) -> MapView:
    record = BaseRecord(base, store, catalog=Source(f"s3://catalogs/{base}") if catalog else None)
    return MapView(base, version=1, record=record)


def placed(base: str) -> MapView:
    return MapView(base, 1, BaseRecord(base), placements={ADAPTER: Placement(ADAPTER, STORE, (), ())})


def published(base: str) -> MapView:
    return MapView(base, 1, BaseRecord(base), published={ADAPTER: STORE})


def named(*views: MapView) -> dict[str, MapView]:
    return {each.base: each for each in views}


def decided(views: Mapping[str, MapView], entries: Mapping[str, Entry | None], adapter: str = ADAPTER) -> str:
    """Return the base that an adapter's name alone means."""
    found = candidate_bases(views, "", adapter)
    if len(found) == 1:
        return found[0].base
    known, storing = possible_bases(found, adapter, entries)
    return choose_base(views, known or storing, adapter, entries).base


def test_a_waves_word_needs_no_catalogs() -> None:
    views = named(view("a/a", STORE, catalog=True), placed("b/b"), view("c/c", catalog=True))
    assert [each.base for each in candidate_bases(views, "", ADAPTER)] == ["b/b"]


def test_waves_over_several_bases_leave_a_doubt() -> None:
    views = named(placed("a/a"), placed("b/b"), view("c/c", catalog=True))
    with pytest.raises(InvalidRequest, match=r"could be on several base models; name one of a/a, b/b$"):
        candidate_bases(views, "", ADAPTER)


def test_the_only_base_that_may_have_it_is_meant_without_its_catalog_s_word() -> None:
    views = named(view("a/a"), view("b/b", catalog=True))
    assert [each.base for each in candidate_bases(views, "", ADAPTER)] == ["b/b"]


@pytest.mark.parametrize(
    ("views", "entries", "base"),
    [
        # One catalog knows it, whatever other bases' stores may have.
        (named(view("a/a", catalog=True), view("b/b", catalog=True)), {"a/a": None, "b/b": REGISTERED}, "b/b"),
        (named(view("a/a", STORE, catalog=True), view("b/b", catalog=True)), {"a/a": None, "b/b": REGISTERED}, "b/b"),
        (named(view("a/a", STORE), view("b/b", catalog=True)), {"b/b": REGISTERED}, "b/b"),
        # Or it was published on one base.
        (named(view("a/a", STORE), published("b/b")), {}, "b/b"),
        (named(published("a/a"), view("b/b", catalog=True)), {"b/b": None}, "a/a"),
        # No base knows it: it may be in the only store.
        (named(view("a/a", catalog=True), view("b/b", STORE)), {"a/a": None}, "b/b"),
        # A retired name means nothing on its base, even if the store may have it.
        (named(view("a/a", STORE, catalog=True), view("b/b", STORE)), {"a/a": RETIRED}, "b/b"),
        (named(view("a/a", catalog=True), view("b/b", catalog=True)), {"a/a": RETIRED, "b/b": REGISTERED}, "b/b"),
        (named(view("a/a", catalog=True), view("b/b", catalog=True)), {"a/a": None, "b/b": RETIRED}, "b/b"),
    ],
)
def test_the_base_that_a_name_alone_means(
    views: Mapping[str, MapView], entries: Mapping[str, Entry | None], base: str
) -> None:
    assert decided(views, entries) == base


@pytest.mark.parametrize(
    ("views", "entries"),
    [
        (named(view("a/a", catalog=True), view("b/b", catalog=True)), {"a/a": REGISTERED, "b/b": REGISTERED}),
        (named(published("a/a"), view("b/b", catalog=True)), {"b/b": REGISTERED}),
        (named(view("a/a", STORE), view("b/b", STORE), view("c/c", catalog=True)), {"c/c": None}),
    ],
)
def test_a_name_that_several_know_or_may_have_in_their_stores_leaves_a_doubt(
    views: Mapping[str, MapView], entries: Mapping[str, Entry | None]
) -> None:
    with pytest.raises(InvalidRequest, match=r"could be on several base models; name one of a/a, b/b$"):
        decided(views, entries)


def test_a_name_that_nobody_knows_and_no_store_may_have_is_not_found() -> None:
    views = named(view("a/a", catalog=True), view("b/b", catalog=True))
    with pytest.raises(AdapterNotFound, match="no base model serves it; available: a/a, b/b"):
        decided(views, {"a/a": None, "b/b": None})
    with pytest.raises(AdapterNotFound, match="no base model serves it"):
        decided(named(view("a/a"), view("b/b")), {})


def test_stores_have_no_revisions() -> None:
    views = named(view("a/a", STORE, catalog=True), view("b/b", STORE, catalog=True))
    with pytest.raises(AdapterNotFound, match="no base model serves it"):
        decided(views, {"a/a": None, "b/b": None}, f"{ADAPTER}@r1")


def test_what_nobody_knows_may_be_of_a_base_whose_part_of_the_map_is_not_complete() -> None:
    views = named(view("a/a", catalog=True), view("b/b", catalog=True), MapView("c/c"))
    with pytest.raises(MapUnavailable, match="c/c: the placement map is not complete yet"):
        decided(views, {"a/a": None, "b/b": None})


def test_a_name_that_a_key_does_not_open_is_as_one_that_nobody_has() -> None:
    hidden = [view("a/a", STORE, catalog=True), published("b/b"), placed("c/c")]
    nothing = [view("a/a", STORE, catalog=True), view("b/b"), view("c/c")]
    scope = Scope(adapters=("other/",))
    assert [
        [each.base for each in candidate_bases(within(named(*views), scope), "", ADAPTER)]
        for views in (hidden, nothing)
    ] == [["a/a"], ["a/a"]]


def test_a_key_that_opens_no_base_may_be_why_there_is_none() -> None:
    views = within(named(placed("demo/a")), Scope(namespaces=frozenset({"other"})))
    with pytest.raises(BaseModelNotFound, match="none in the scope of your key; apply a BaseModel, or use another"):
        candidate_bases(views, "", ADAPTER)


_views = st.builds(view, st.just(""), st.sampled_from([None, STORE]), catalog=st.booleans())
_entries = st.sampled_from([None, REGISTERED, RETIRED])


@given(st.lists(st.tuples(_views, _entries, st.booleans()), min_size=2, max_size=4))
def test_a_name_means_the_same_whoever_holds_copies(bases: list[tuple[MapView, Entry | None, bool]]) -> None:
    def outcome(*, holding: bool) -> str | type[MintError]:
        views, entries = dict[str, MapView](), dict[str, Entry | None]()
        for number, (each, entry, holds) in enumerate(bases):
            base = f"base/{number}"
            held = {ADAPTER: Held(ADAPTER, child(STORE, ADAPTER), Tier.DEVICE)} if holding and holds else {}
            engine = Engine("e", ScriptedEngine(base, "e").record(), alive=True, held=held)
            views[base] = MapView(base, 1, each.record, engines={"e": engine})
            if each.has_catalog:
                entries[base] = entry
        try:
            return decided(views, entries)
        except MintError as error:
            return type(error)

    assert outcome(holding=True) == outcome(holding=False)

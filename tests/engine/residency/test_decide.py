"""Decide what to load and what to drop, from a frozen view alone."""

from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.records import Assignment, Tier
from mint_contracts.source import Source, child
from mint_engine.residency.decide import CopyView, decide, satisfied, stale, victim, wanted_tier

STORE = Source("pvc://claim/store")
NAMES = ("a", "b", "c")
WANTABLE = (Tier.DEVICE, Tier.HOST, Tier.DISK)


def at(name: str, version: int) -> Source:
    """The source of a version; version 0 is the one in the store."""
    return child(STORE, name) if version == 0 else Source(f"s3://other/{name}", str(version))


def copy(name: str, tier: Tier, version: int = 0, **facts: object) -> CopyView:
    known = {"users": 0, "used": 0, "loading": False, "blocked": False, "for_wave": False, "current": False} | facts
    return CopyView(adapter=name, source=at(name, version), tier=tier, **known)  # type: ignore[arg-type]


def want(name: str, tier: Tier = Tier.DEVICE, version: int = 0) -> dict[str, Assignment]:
    return {name: Assignment(name, at(name, version), tier)}


def test_wanted_and_absent_copies_are_loaded_warmest_first() -> None:
    wants = want("a", Tier.DISK) | want("b") | want("c", Tier.HOST)
    assert [key[0] for key, _ in decide([], wants, STORE, room=4).load] == ["b", "c", "a"]


def test_loads_are_bounded_and_what_has_no_room_waits() -> None:
    wants = want("a") | want("b") | want("c")
    actions = decide([copy("a", Tier.REMOTE, loading=True)], wants, STORE, room=1)
    assert ([key[0] for key, _ in actions.load], actions.wait) == (["b"], ("c",))


def test_first_loads_and_those_that_failed_before_take_turns() -> None:
    wants = want("a") | want("b") | want("c", Tier.DISK)
    failed = [copy(name, Tier.REMOTE, failed=True) for name in ("a", "b")]
    actions = decide(failed, wants, STORE, room=2)
    assert ([key[0] for key, _ in actions.load], actions.wait, actions.retry) == (["c", "a"], ("b",), ("b",))


def test_a_blocked_copy_is_left_alone() -> None:
    assert decide([copy("a", Tier.REMOTE, blocked=True)], want("a"), STORE, room=4).load == ()


def test_a_waves_adapter_leaves_its_slot_with_the_wave_once_idle() -> None:
    idle, busy = copy("a", Tier.DEVICE, for_wave=True), copy("a", Tier.DEVICE, for_wave=True, users=1)
    assert decide([idle], {}, STORE, room=4).vacate == (idle.key,)
    assert decide([busy], {}, STORE, room=4).vacate == ()
    assert decide([idle], want("a", Tier.HOST), STORE, room=4).vacate == (idle.key,)


def test_an_adapter_that_a_request_loaded_stays_until_its_slot_is_needed() -> None:
    here = copy("a", Tier.DEVICE)
    assert decide([here], {}, STORE, room=4).vacate == ()
    assert victim([here], {}) == here.key


def test_a_copy_that_the_store_no_longer_names_leaves_at_once() -> None:
    here = copy("a", Tier.DEVICE, version=1)
    assert decide([here], {}, STORE, room=4).vacate == (here.key,)
    warm = copy("a", Tier.HOST, version=1)
    assert decide([warm], {}, STORE, room=4).drop == (warm.key,)


def test_the_old_revision_stays_until_the_new_one_is_there() -> None:
    old = copy("a", Tier.DEVICE, version=1, for_wave=True, current=True)
    wants = want("a", version=2)
    assert decide([old], wants, STORE, room=4).vacate == ()
    assert victim([old], wants) is None
    failed = copy("a", Tier.REMOTE, version=2, blocked=True)
    assert decide([old, failed], wants, STORE, room=4).vacate == ()
    new = copy("a", Tier.DEVICE, version=2, for_wave=True, current=True)
    replaced = copy("a", Tier.DEVICE, version=1, for_wave=True)
    assert decide([replaced, new], wants, STORE, room=4).vacate == (replaced.key,)


views = st.builds(
    copy,
    st.sampled_from(NAMES), st.sampled_from(list(Tier)), st.integers(0, 2), users=st.integers(0, 2),
    used=st.integers(0, 9), **{fact: st.booleans() for fact in ("loading", "blocked", "for_wave", "current")},
)  # fmt: skip
pictures = st.lists(views, max_size=8, unique_by=lambda view: view.key)
wishes = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.sampled_from(WANTABLE), st.integers(0, 2))).map(
    lambda chosen: {name: Assignment(name, at(name, version), tier) for name, (tier, version) in chosen.items()}
)


@given(pictures, wishes, st.integers(0, 3))
def test_a_decision_never_touches_what_is_in_use_wanted_or_current(
    copies: list[CopyView], wants: dict[str, Assignment], room: int
) -> None:
    by_key = {view.key: view for view in copies}
    actions = decide(copies, wants, STORE, room=room)
    assert actions == decide(copies, wants, STORE, room=room), "the same picture, the same decision"
    assert len(actions.load) <= room
    for key, tier in actions.load:
        assert wanted_tier(wants, key) is tier
        assert key not in by_key or not (by_key[key].loading or by_key[key].blocked or satisfied(by_key[key], wants))
    for key in actions.vacate + actions.drop:
        view = by_key[key]
        assert view.users == 0
        assert not view.loading
        assert stale(view, wants, STORE) or wanted_tier(wants, key).warmth < view.tier.warmth
        if view.current and key[0] in wants:
            assert wants[key[0]].source == key[1], (
                "what answers requests is not taken from them by a change of source"
            )


@given(pictures, wishes)
def test_a_victim_is_idle_unwanted_and_the_least_recently_used(
    copies: list[CopyView], wants: dict[str, Assignment]
) -> None:
    key = victim(copies, wants)
    in_slots = [view for view in copies if view.tier is Tier.DEVICE and view.users == 0]
    open_to = [view for view in in_slots if wanted_tier(wants, view.key) is not Tier.DEVICE]
    if key is None:
        assert all(view.current and wants[view.adapter].residency is Tier.DEVICE for view in open_to)
        return
    chosen = next(view for view in copies if view.key == key)
    assert chosen in open_to
    others = [view for view in open_to if not (view.current and view.adapter in wants)]
    assert all(chosen.used <= view.used for view in others)

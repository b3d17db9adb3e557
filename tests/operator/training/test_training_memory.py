"""Which policies begin with the host memory that engines report: as many as fit, and no wave waits forever."""

from collections import Counter
from collections.abc import Mapping
from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.records import DeviceRoom, EngineView, PolicyRoom
from mint_contracts.resources import Serve
from mint_contracts.training import Policies, Policy, Train
from mint_contracts.training_records import Stage
from mint_operator.planning.engines import Engine
from mint_operator.planning.sizes import Size
from mint_operator.planning.snapshot import ObservedWave
from mint_operator.training.memory import Memory, Starts, Taken, needs
from mint_operator.training.place import Slots, fill
from mint_operator.training.standing import PolicyStanding, WaveStanding
from tests.operator import worlds
from tests.operator.training_worlds import (
    STEPS,
    World,
    base,
    condition,
    dead,
    engines,
    planned,
    published,
    replicas,
    training_wave,
)

WEIGHTS = {"self_attn.q_proj": 3, "self_attn.v_proj": 1, "mlp.up_proj": 6}
ROOM = PolicyRoom(budget=1000, weights=WEIGHTS, own=2, copies=1)  # rank R needs 20 R itself, and 10 R to be copied
ENGINES = 3


def with_memory(count: int, budget: int = 1000, **calls: int) -> list[EngineView]:
    """Return engines that each report `budget` bytes of memory for policies."""
    return [heard(view, msgspec.structs.replace(ROOM, budget=budget, **calls)) for view in engines(count)]


def heard(view: EngineView, room: PolicyRoom) -> EngineView:
    assert view.record is not None
    return msgspec.structs.replace(view, record=msgspec.structs.replace(view.record, policy_room=room))


def wave(name: str, *ranks: int, gang: bool = False) -> ObservedWave:
    policies = tuple(Policy(name=f"team/{name}-{at}", rank=rank) for at, rank in enumerate(ranks))
    admission, serve = ("Gang" if gang else "Elastic"), Serve(residency="Host")
    return training_wave(name, policies=Policies(list=policies), admission=admission, serve=serve)  # type: ignore[arg-type]


def leased(world: World) -> dict[str, str]:
    return {name: engine for name, (engine, _) in world.leases.items()}


def complete(world: World, *names: str) -> None:
    world.hear(Stage.COMPLETE, STEPS, *names, published=published(STEPS))


def test_a_policy_takes_by_rank_and_targets_as_far_as_its_engine_knows_them() -> None:
    assert needs(Policy(name="x", rank=2), ROOM) == Taken(40, 20)
    assert needs(Policy(name="x", rank=2, target_modules=["q_proj", "v_proj"]), ROOM) == Taken(16, 8)
    assert needs(Policy(name="x", rank=2, target_modules=["self_attn.v_proj"]), ROOM) == Taken(4, 2)
    for unknown in (
        Policy(name="x", rank=2, target_modules=["q_proj", "3.mlp.up_proj"]),
        Policy(name="x", rank=2, start_from="acme/other"),
        Policy(name="x"),
        Policy(name="x", rank=34),  # more than all there is: its engine says so
    ):
        assert needs(unknown, ROOM) == Taken()


def test_who_begins_with_a_revision_takes_as_much_as_that_has_weights_once_somebody_has_read_it() -> None:
    known = {"acme/all": Size(2, 2 * 20 + 4096), "acme/few": Size(2, 2 * 8), "acme/huge": Size(34, 2 * 340)}
    starts, policy = Starts(known | {"acme/told-no-bytes": Size(2)}, item_bytes=2), Policy(name="x", rank=8)
    for adapter, taken in {
        "acme/all": Taken(40, 20),  # the revision's rank counts, not the policy's; a file's header has no weights
        "acme/few": Taken(16, 8),  # too small a file for all modules
        "acme/told-no-bytes": Taken(40, 20),
        "acme/huge": Taken(),  # more than all there is: its engine says so
        "acme/unread": Taken(),
    }.items():
        assert needs(msgspec.structs.replace(policy, start_from=adapter), ROOM, starts) == taken, adapter


@pytest.mark.parametrize("read", [True, False])
def test_a_gang_that_goes_on_from_revisions_waits_for_their_memory_where_it_is_known(read: bool) -> None:
    policies = tuple(Policy(name=f"team/w-{at}", start_from="acme/first") for at in range(2))
    gang = training_wave("w", policies=Policies(list=policies), admission="Gang", serve=Serve(residency="Host"))
    sizes = {"acme/first": Size(20, 2 * 200)} if read else {}
    world = planned(base(), [wave("first", 25)], with_memory(1), sizes=sizes)
    world.waves.append(gang)
    world.step()
    assert set(leased(world)) == {"team/first-0"} | (set() if read else {"team/w-0", "team/w-1"})
    if read:
        assert condition(world, "w", "Admitted")[2].startswith("needs 1000 bytes of host memory")
        complete(world, "team/first-0")
        world.step()
        assert set(leased(world)) >= {"team/w-0", "team/w-1"}


def test_an_elastic_wave_begins_with_as_many_as_have_memory_and_the_rest_follows() -> None:
    world = planned(base(), [wave("w", 10, 30, 10, 10)], with_memory(1, 1100))
    assert set(leased(world)) == {"team/w-0", "team/w-1"}, "200 bytes and 600, and 300 to save the larger"
    complete(world, "team/w-1")
    assert set(leased(world)) >= {"team/w-0", "team/w-2", "team/w-3"}


def test_a_gang_waits_for_memory_and_says_how_much_there_is() -> None:
    world = planned(base(), [wave("first", 20)], with_memory(1, calls=100, calls_copies=30))
    world.waves.append(wave("w", 10, 10, gang=True))
    world.step()
    assert set(leased(world)) == {"team/first-0"}
    status, reason, message = condition(world, "w", "Admitted")
    assert (status, reason) == ("False", "WaitingForCapacity")
    assert message.startswith(
        "needs 500 bytes of host memory to train its policies and checkpoint one of them; the ready engines with "
        "free slots have 300 bytes of 1000 bytes free (at most 300 bytes on one engine); "
    )
    assert world.status("w").phase == "Queued"
    complete(world, "team/first-0")
    world.step()
    assert set(leased(world)) >= {"team/w-0", "team/w-1"}


def test_a_gang_is_told_only_of_memory_where_slots_are_free() -> None:
    served = worlds.wave("s", [f"a/{index}" for index in range(8)], engines=[0])
    world = World(base(2, 2), [served], with_memory(2, budget=500))
    for _ in range(2):
        world.step()
    world.waves.append(wave("w", 10, 10, 10, gang=True))
    world.step()
    assert "needs 700 bytes" in (message := condition(world, "w", "Admitted")[2])
    assert "have 500 bytes of 500 bytes free" in message


ON_GPU = msgspec.structs.replace(ROOM, own=0, device=DeviceRoom(1000, own=3, shared={"mlp.up_proj": 2}))


def test_on_a_gpu_a_policy_takes_its_memory_and_the_hosts_for_copies() -> None:
    """Beside its own numbers, a part of several ranks' during an update."""
    assert needs(Policy(name="x", rank=2), ON_GPU) == Taken(0, 20, 64)
    assert needs(Policy(name="x", rank=2, target_modules=["v_proj"]), ON_GPU) == Taken(0, 2, 6)
    revision = Starts({"acme/all": Size(2, 2 * 20 + 4096)}, item_bytes=2)
    assert needs(Policy(name="x", start_from="acme/all"), ON_GPU, revision) == Taken(0, 20, 67), "at most"
    assert needs(Policy(name="x", rank=32), ON_GPU) == Taken(), "more than the GPU has: its engine says so"


def test_a_gang_waits_for_a_gpus_memory_and_says_how_much_there_is() -> None:
    room = msgspec.structs.replace(ON_GPU, device=DeviceRoom(1000, own=3, calls=100))
    world = planned(base(), [wave("first", 10)], [heard(engines(1)[0], room)])
    world.waves.append(wave("w", 11, 11, gang=True))
    world.step()
    assert set(leased(world)) == {"team/first-0"}
    assert condition(world, "w", "Admitted")[2].startswith(
        "needs 660 bytes of GPU memory to train its policies; the ready engines with free slots have 600 bytes of "
        "1000 bytes free (at most 600 bytes on one engine); "
    )
    complete(world, "team/first-0")
    world.step()
    assert set(leased(world)) >= {"team/w-0", "team/w-1"}


def test_what_no_engines_host_has_enough_of_is_not_said_of_the_gpus() -> None:
    rooms = dict.fromkeys(("a", "b"), msgspec.structs.replace(ON_GPU, budget=250, calls=100))
    message = Memory(rooms, {}).shortage([Policy(name="x", rank=20)], rooms)
    assert message.startswith(
        "needs 200 bytes of host memory to train its policies and checkpoint one of them; the ready engines with "
        "free slots have 300 bytes of 500 bytes free (at most 150 bytes on one engine); "
    )


def test_policies_of_a_gang_are_spread_by_what_gpus_have_left() -> None:
    """The large one first, or it would find no GPU that has enough for it."""
    rooms = [msgspec.structs.replace(ON_GPU, device=DeviceRoom(most, own=3)) for most in (600, 310)]
    heard_of = [heard(*each) for each in zip(engines(2), rooms, strict=True)]
    world = planned(base(2, 2), [wave("w", 10, 20, gang=True)], heard_of)
    found = leased(world)
    assert (found["team/w-1"], found["team/w-0"]) == tuple(each.engine for each in engines(2))


@pytest.mark.parametrize("calls", [0, 900])
def test_a_gang_that_could_never_have_memory_together_begins_and_its_policies_take_turns_in_it(calls: int) -> None:
    ranks = (10, 10) if calls else (30, 30)
    world = planned(base(), [wave("w", *ranks, gang=True)], with_memory(1, calls=calls))
    assert len(leased(world)) == 2


def test_adapters_that_waves_want_in_memory_are_left_theirs() -> None:
    serving = worlds.wave("s", ["a"], residency="Host")
    world = planned(base(), [serving], with_memory(1), sizes={"a": Size(8, 501)})
    world.waves.append(wave("w", 10, 10))
    world.step()
    assert set(leased(world)) == {"team/w-0"}


def test_engines_are_added_for_memory_as_few_as_help_and_those_on_their_way_are_waited_for() -> None:
    world = World(base(1, 5), [wave("w", 25, 25, 25, gang=True)], with_memory(1))
    assert replicas(world.step()) == 3, "two of 500 bytes, and 250 to save one, fit on none"
    assert leased(world) == {}
    world.engines += engines(3)[1:2]  # it reports, and its base is not loaded yet: it is as the first will be
    assert replicas(world.step()) == 3
    world.engines = with_memory(3)
    world.step()
    assert sorted(leased(world).values()) == ["smol-0", "smol-1", "smol-2"]
    assert replicas(world.step()) == 3


def test_however_long_an_engine_that_was_added_for_memory_is_on_its_way_no_more_are_added() -> None:
    world = World(base(1, 8), [wave("w", 25, 25, gang=True)], with_memory(1))
    assert replicas(world.step()) == 2
    world.engines.append(dead(engines(2)[1]))
    for seconds in (10.0, 60.0, 600.0):
        world.away_s = world.unready_s = {"smol-1": seconds}
        assert replicas(world.step()) == 2
        assert leased(world) == {}
    world.engines, world.away_s, world.unready_s = with_memory(2), {}, {}
    world.step()
    assert sorted(leased(world).values()) == ["smol-0", "smol-1"]


def test_an_engine_that_would_help_nobody_is_not_added() -> None:
    world = World(base(1, 2), [wave("w", 30, 30, 30, gang=True)], with_memory(1))
    assert replicas(world.step()) == 1
    assert len(leased(world)) == 3


def test_engines_of_an_earlier_version_tell_nothing_and_only_slots_count() -> None:
    world = planned(base(), [wave("w", 30, 30, 30, gang=True), wave("v", 30, 30)], engines(1))
    assert len(leased(world)) == 5


def test_a_gang_begins_where_it_fits_in_another_order_than_it_is_told_in() -> None:
    """In the given order both policies of rank 10 share an engine, which leaves room for one of rank 30."""
    world = planned(base(2, 2), [wave("first", 20)], with_memory(2, 1100))
    world.waves.append(wave("w", 10, 10, 30, 30, gang=True))
    world.step()
    assert set(leased(world)) == {"team/first-0"}
    complete(world, "team/first-0")
    world.step()
    places = [leased(world)[f"team/w-{at}"] for at in range(4)]
    assert places[0] != places[1], "each with one of rank 30: 800 bytes, and 300 to save the larger"
    assert places[2] != places[3]


RANKS = st.lists(st.integers(1, 32), min_size=1, max_size=6)
WAVES = st.lists(st.tuples(RANKS, st.booleans()), min_size=1, max_size=4)
LOADS = st.tuples(st.integers(0, 1200), st.integers(0, 400), st.integers(0, 200))


@given(RANKS, st.lists(LOADS, min_size=1, max_size=ENGINES), st.booleans())
@settings(max_examples=300, deadline=None)
def test_no_more_is_given_than_there_is_nor_less(ranks: list[int], loads: list[tuple[int, ...]], whole: bool) -> None:
    rooms = {
        f"smol-{at}": msgspec.structs.replace(ROOM, budget=budget, calls=calls)
        for at, (budget, calls, _) in enumerate(loads)
    }
    wanted = {f"smol-{at}": bytes_ for at, (_, _, bytes_) in enumerate(loads)}
    alive = [Engine(name, at, engines(1)[0].record) for at, name in enumerate(rooms)]
    slots = Slots(alive, 4, {}, Memory(rooms, wanted))
    policies = {f"p{at}": Policy(name=f"p{at}", rank=rank) for at, rank in enumerate(ranks)}
    standing = WaveStanding(
        Train(policies=Policies()), tuple(map(PolicyStanding, policies.values())), tuple(policies)
    )
    pins = fill(standing, {}, slots, whole=whole)
    for name, room in rooms.items():
        taken = Taken(room.calls)
        for policy, engine in pins.items():
            if engine == name and (needed := needs(policies[policy], room)).total:
                taken = taken.plus(needed)
                assert taken.own + taken.copies <= room.budget - wanted[name]
    assert max(Counter(pins.values()).values(), default=0) <= 4
    if whole:
        assert len(pins) in {0, len(policies)}
    else:
        left = policies.keys() - pins.keys()
        assert not any(slots.open(engine, policies[name]) for name in left for engine in rooms)


@given(st.lists(st.integers(1, 32), min_size=1, max_size=5), st.lists(LOADS, min_size=1, max_size=ENGINES), st.data())
@settings(max_examples=300, deadline=None)
def test_a_gang_that_fits_in_any_way_is_placed(
    ranks: list[int], loads: list[tuple[int, ...]], data: st.DataObject
) -> None:
    each = data.draw(st.integers(1, 4))
    rooms = {
        f"smol-{at}": msgspec.structs.replace(ROOM, budget=budget, calls=calls, calls_copies=copies)
        for at, (budget, calls, copies) in enumerate(loads)
    }
    alive = [Engine(name, at, engines(1)[0].record) for at, name in enumerate(rooms)]
    policies = [Policy(name=f"p{at}", rank=rank) for at, rank in enumerate(ranks)]
    names = tuple(policy.name for policy in policies)
    standing = WaveStanding(Train(policies=Policies()), tuple(map(PolicyStanding, policies)), names)
    pins = fill(standing, {}, Slots(alive, each, {}, Memory(rooms, {})), whole=True)

    def fits(places: tuple[str, ...]) -> bool:
        slots = Slots(alive, each, {}, Memory(rooms, {}))
        for policy, place in zip(policies, places, strict=True):
            if not slots.open(place, policy):
                return False
            slots.take(place, policy)
        return True

    assert pins.keys() == set(names) or not any(map(fits, product(rooms, repeat=len(policies))))
    assert not pins or fits(tuple(pins[name] for name in names))


def all_trained(world: World, budget: int, rounds: int) -> bool:
    """Return whether all waves complete when policies end one after another and engines come as planned."""
    for _ in range(rounds):
        count = replicas(world.step())
        world.engines = with_memory(max(count, len(world.engines)), budget)
        running = sorted(name for name in leased(world) if not _ended(world, name))
        if running:
            world.say(Stage.COMPLETE, STEPS, running[0], published=published(STEPS))
    return all(each.phase == "Complete" for each in (wave.status for wave in world.waves))


def _ended(world: World, policy: str) -> bool:
    progress = [of[policy] for of in world.training.progress.values() if policy in of]
    return any(each.stage is Stage.COMPLETE for each in progress)


@given(WAVES, st.integers(1, ENGINES), st.sampled_from([300, 700, 1000, 2000]))
@settings(max_examples=40, deadline=None)
def test_every_wave_has_its_turn_in_the_end(waves: list[tuple[list[int], bool]], high: int, budget: int) -> None:
    shown = [wave(f"w{at}", *ranks, gang=gang) for at, (ranks, gang) in enumerate(waves)]
    world = World(base(1, high), shown, with_memory(1, budget))
    assert all_trained(world, budget, sum(len(ranks) for ranks, _ in waves) + 2 * len(waves) + 3)


@given(WAVES)
@settings(max_examples=60, deadline=None)
def test_where_there_is_memory_for_all_or_nobody_tells_of_it_it_changes_nothing(
    waves: list[tuple[list[int], bool]],
) -> None:
    found: list[Mapping[str, str]] = []
    for views in (engines(2), with_memory(2, budget=1 << 20)):
        shown = [wave(f"w{at}", *ranks, gang=gang) for at, (ranks, gang) in enumerate(waves)]
        world = planned(base(2, 2), shown, views)
        found.append(leased(world))
    assert found[0] == found[1]

"""Whatever happens to engines, waves and the map: one lease per policy, growing tokens, no slot given twice."""

from collections import Counter
from dataclasses import dataclass, field

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_contracts.records import EngineView, PolicyRoom, Tier
from mint_contracts.resources import AdapterWaveSpec, Serve
from mint_contracts.training_records import Order, Stage
from tests.operator import worlds
from tests.operator.training_worlds import STEPS, World, base, dead, engines, published, restarted, training_wave

ENGINES = 3
SLOTS = 4
ENDED = {Stage.COMPLETE, Stage.FAILED, Stage.CANCELLED}


@dataclass
class Story:
    """A world with random events; `tokens` are the highest leases granted so far.

    `saved` are the newest checkpoints that engines have reported, `known` those named in leases.
    """

    world: World = field(default_factory=lambda: World(base(ENGINES, ENGINES, SLOTS), [], engines(ENGINES)))
    tokens: dict[str, int] = field(default_factory=dict)
    saved: Counter[str] = field(default_factory=Counter)
    known: dict[str, int] = field(default_factory=dict)
    unread: dict[str, tuple[AdapterWaveSpec, dict[str, object]]] = field(default_factory=dict)
    starts: int = 1
    room: PolicyRoom | None = None  # the memory that engines report

    def __post_init__(self) -> None:
        self.world.engines = [self.engine(ordinal) for ordinal in range(ENGINES)]

    def engine(self, ordinal: int) -> EngineView:
        view = engines(ENGINES)[ordinal]
        assert view.record is not None
        return msgspec.structs.replace(view, record=msgspec.structs.replace(view.record, policy_room=self.room))

    def kill(self, ordinal: int) -> None:
        self.world.engines[ordinal] = dead(self.world.engines[ordinal])

    def stay_away(self, ordinal: int) -> None:
        self.kill(ordinal)
        self.world.away_s[f"smol-{ordinal}"] = 60.0

    def start(self, ordinal: int) -> None:
        self.starts += 1
        self.world.engines[ordinal] = restarted(self.engine(ordinal), self.starts)
        self.world.away_s.pop(f"smol-{ordinal}", None)

    def train(self, index: int, count: int, *, gang: bool) -> None:
        name = f"w{index}"
        if not any(wave.meta.name == name for wave in self.world.waves):
            serve = Serve(residency="Device" if gang else "Host")
            wave = training_wave(name, count, admission="Gang" if gang else "Elastic", serve=serve)
            self.world.waves.append(wave)

    def serve(self, index: int, count: int, priority: int) -> None:
        name = f"s{index}"
        if not any(wave.meta.name == name for wave in self.world.waves):
            adapters = [f"{name}-{number}" for number in range(count)]
            self.world.waves.append(worlds.wave(name, adapters, priority=priority))

    def delete(self, index: int) -> None:
        if self.world.waves:
            del self.world.waves[index % len(self.world.waves)]

    def change(self, index: int, paused: bool, cancelled: bool) -> None:
        if f"team/w{index}" not in self.unread:
            self.world.change(f"w{index}", paused=paused, cancelled=cancelled)

    def ask_for_more(self, index: int) -> None:
        """Ask for more steps than a complete policy has taken."""
        if f"team/w{index}" not in self.unread:
            self.world.change(f"w{index}", steps=STEPS * 2)

    def lose_sight(self, index: int) -> None:
        """Make a wave's spec unreadable, and remember what the wave has, to check that it keeps it."""
        for at, wave in enumerate(self.world.waves):
            if at == index and not wave.defect:
                self.unread[wave.meta.key] = wave.spec, self.has(wave.meta.key)
                self.world.waves[at] = worlds.unread(wave)

    def see_again(self, index: int) -> None:
        for at, wave in enumerate(self.world.waves):
            if at == index and wave.defect:
                spec, _ = self.unread.pop(wave.meta.key)
                self.world.waves[at] = msgspec.structs.replace(wave, spec=spec, defect="")

    def has(self, key: str) -> dict[str, object]:
        """Return what a wave has according to the map, ignoring adapters' places and engines' last words."""
        record = self.world.training.training.get(key)
        return {
            "leases": {name: lease for name, lease in self.world.leases.items() if lease[1].wave == key},
            "record": record and msgspec.structs.replace(record, last_words=()),
            "adapters": {name for name, each in self.world.placements.items() if key in each.waves},
        }

    def say(self, ordinal: int, stage: Stage, step: int) -> None:
        """Let a live engine report this stage and step for everything that it trains."""
        if self.world.engines[ordinal].record is not None:
            names = list(self.world.training.trains.get(f"smol-{ordinal}", {}))
            if names:
                fields = {"published": published(step), "saved": step}
                self.world.say(stage, STEPS if stage is Stage.COMPLETE else step, *names, **fields)
                self.saved |= Counter(dict.fromkeys(names, step))

    def lose_the_map(self) -> None:
        """Lose everything in Redis, and let live engines report their policies' progress again."""
        alive = {view.engine for view in self.world.engines if view.record is not None}
        before = self.world.training
        progress = {engine: of for engine, of in before.progress.items() if engine in alive}
        self.world.training = msgspec.structs.replace(before, training={}, trains={}, progress=progress)
        self.unread = {key: (spec, {"adapters": set()}) for key, (spec, _) in self.unread.items()}
        self.world.version, self.world.placements, self.world.recorded = None, {}, {}
        self.known = {}
        # Policies that nobody reports any more begin again, with tokens from a later clock.
        leases = {name: each.lease for of in progress.values() for name, each in of.items()}
        self.tokens = {name: token for name, token in self.tokens.items() if leases.get(name) == token}

    def settle(self) -> None:
        """Plan, write, and check the invariants."""
        self.world.step()
        found = self.world.leases  # fails if a policy has two
        for name, (engine, lease) in found.items():
            assert lease.lease >= self.tokens.get(name, 0)
            self.tokens[name] = lease.lease
            assert engine in {view.engine for view in self.world.engines}
            assert self.known.get(name, 0) <= lease.saved <= self.saved[name]
        self.known = {name: lease.saved for name, (_, lease) in found.items()}
        self._slots_hold()
        there = {wave.meta.key for wave in self.world.waves}
        self.unread = {key: each for key, each in self.unread.items() if key in there}
        for key, (_, had) in self.unread.items():
            assert {what: self.has(key)[what] for what in had} == had

    def _slots_hold(self) -> None:
        world = self.world
        taken = Counter(
            place.engine
            for placement in world.placements.values()
            for place in placement.places
            if place.residency is Tier.DEVICE
        )
        for name, (engine, lease) in world.leases.items():
            progress = world.training.progress.get(engine, {}).get(name)
            stage = progress.stage if progress is not None and progress.run == lease.run else None
            runs = lease.order is Order.RUN and lease.wave not in self.unread
            taken[engine] += runs or stage not in {Stage.PAUSED, *ENDED}
        alive = {view.engine for view in world.engines if view.record is not None}
        assert all(taken[engine] <= SLOTS for engine in alive), taken


ROOMS = st.sampled_from([None, PolicyRoom(500, {"q_proj": 10}, own=2, copies=1)])  # for two policies of rank 8
ordinals = st.integers(0, ENGINES - 1)
EVENTS = st.one_of(
    st.tuples(st.just("kill"), ordinals),
    st.tuples(st.just("stay_away"), ordinals),
    st.tuples(st.just("start"), ordinals),
    st.tuples(st.just("train"), st.integers(0, 2), st.integers(1, 6), st.booleans()),
    st.tuples(st.just("serve"), st.integers(0, 2), st.integers(1, 6), st.integers(0, 2)),
    st.tuples(st.just("delete"), st.integers(0, 5)),
    st.tuples(st.just("change"), st.integers(0, 2), st.booleans(), st.booleans()),
    st.tuples(st.just("ask_for_more"), st.integers(0, 2)),
    st.tuples(st.just("say"), ordinals, st.sampled_from(list(Stage)), st.integers(0, STEPS)),
    st.tuples(st.just("lose_the_map")),
    st.tuples(st.just("lose_sight"), st.integers(0, 5)),
    st.tuples(st.just("see_again"), st.integers(0, 5)),
)


def play(events: list[tuple[object, ...]], room: PolicyRoom | None) -> Story:
    """Return a new story after these events; it settles after each."""
    story = Story(room=room)
    for what, *arguments in events:
        if what == "train":
            index, count, gang = arguments
            story.train(index, count, gang=gang)  # type: ignore[arg-type]
        else:
            getattr(story, str(what))(*arguments)
        story.settle()
    return story


@given(st.lists(EVENTS, max_size=25), ROOMS)
@settings(max_examples=200, deadline=None)
def test_leases_are_exclusive_and_fenced_and_slots_are_given_once(
    events: list[tuple[object, ...]], room: PolicyRoom | None
) -> None:
    play(events, room)


@given(st.lists(EVENTS, max_size=15), ROOMS)
@settings(max_examples=100, deadline=None)
def test_a_second_look_changes_nothing(events: list[tuple[object, ...]], room: PolicyRoom | None) -> None:
    story = play(events, room)
    for _ in range(3):
        story.settle()
    leases, placements = story.world.leases, story.world.placements
    found = story.world.step()
    assert found.training == {}
    assert (story.world.leases, story.world.placements) == (leases, placements)


@given(st.integers(1, 12), st.integers(0, 12))
def test_a_gang_gets_all_of_its_slots_or_none(policies: int, served: int) -> None:
    story = Story()
    if served:
        story.serve(0, served, 0)
        story.settle()
    story.train(0, policies, gang=True)
    story.settle()
    assert len(story.world.leases) == (policies if policies + served <= ENGINES * SLOTS else 0)

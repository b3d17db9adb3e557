"""The pure functions behind the page's lists: paging, phases, states, curves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_contracts.records import TRAIN, Bringing, Failure, Held, Tier, WaveRecord
from mint_contracts.source import Source
from mint_gateway.page import bases, waves
from mint_gateway.page.pages import Asked
from mint_gateway.page.waves import thinned
from mint_gateway.view import Engine, MapView
from mint_gateway.waves.phase import Copies, phase
from tests.gateway.scripted import ScriptedEngine

WORDS = st.text("ab/", min_size=1, max_size=4)


@given(st.sets(WORDS, max_size=12), WORDS | st.just(""), st.integers(1, 4))
def test_pages_tell_each_name_that_begins_so_once_and_end(names: set[str], prefix: str, limit: int) -> None:
    found: list[str] = []
    after = ""
    for _ in range(len(names) + 1):
        page, after = Asked(limit, after, prefix).of(names)
        assert len(page) <= limit
        found += page
        if not after:
            break
    assert found == sorted(name for name in names if name.startswith(prefix))


@given(st.lists(st.floats(-1, 1), max_size=50), st.integers(1, 10))
def test_curves_are_thinned_to_means_that_end_with_the_last_step(rewards: list[float], most: int) -> None:
    points, every = thinned(rewards, most)
    assert len(points) <= most
    assert len(points) == -(-len(rewards) // every)
    if rewards:
        assert points[-1] == pytest.approx(sum(rewards[-every:]) / len(rewards[-every:]), abs=1e-6)
        assert every > 1 or points == [round(each, 6) for each in rewards]


def engine(**changes: object) -> Engine:
    scripted = ScriptedEngine("demo/base", "e-0")
    alive = bool(changes.pop("alive", True))
    bringing = changes.pop("bringing", None)
    for name, value in changes.items():
        setattr(scripted, name, value)
    record = scripted.record()
    if isinstance(bringing, Bringing):
        record = type(record)(
            **{name: getattr(record, name) for name in record.__struct_fields__} | {"bringing": bringing}
        )
    return Engine("e-0", record, alive, scripted.held)


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "Ready", ""),
        ({"alive": False}, "Silent", "its heartbeat ran out"),
        ({"ready": False}, "Starting", "is not ready yet"),
        ({"ready": False, "running": 2}, "Draining", "takes no new requests"),
        ({"ready": False, "failure": Failure("CorruptFile", "torn", True)}, "Failed", "CorruptFile: torn"),
        (
            {"ready": False, "bringing": Bringing("Copying", 1, 4, 1.0)},
            "Loading",
            "copying the base: 25 %, about 3 s left",
        ),
    ],
)
def test_an_engine_s_state_is_a_word_and_what_there_is_to_say(
    changes: dict[str, object], state: str, words: str
) -> None:
    view = MapView("demo/base", engines={"e-0": engine(**changes)})
    seen = bases.seen(view, 0, {})
    assert [(each.state, each.said) for each in seen.engines] == [(state, words)]
    assert dict(seen.states) == {state: 1}
    assert seen.slots_total == (0 if state == "Silent" else 8), "who is silent has nothing to give"


def test_all_engines_are_counted_and_the_first_ones_shown() -> None:
    engines = {f"e-{n:03}": Engine(f"e-{n:03}", engine().record, True, {}) for n in range(bases.ENGINES_SHOWN + 6)}
    seen = bases.seen(MapView("demo/base", engines=engines), 0, {})
    assert (len(seen.engines), seen.more_engines, seen.states["Ready"]) == (bases.ENGINES_SHOWN, 6, len(engines))
    assert bases.total([MapView("demo/base", engines=engines)], 0, all_open=True).slots_total == 8 * len(engines)


def test_a_tally_counts_tiers_and_failures_and_not_what_is_only_known_of() -> None:
    source, torn = Source("s3://a"), Failure("CorruptFile", "torn", True)
    held = {
        "a": Held("a", source, Tier.DEVICE),
        "b": Held("b", source, Tier.DISK),
        "c": Held("c", source, Tier.REMOTE, failure=torn),
        "d": Held("d", source, Tier.REMOTE, published=True),
    }
    assert bases.tally(held) == bases.Tally(device=1, disk=1, failed=1)


ADMITTED = WaveRecord("a/w", "names", 2, 2, Tier.DEVICE, admitted=True)


@pytest.mark.parametrize(
    ("record", "copies", "word"),
    [
        (ADMITTED, Copies(placed=4, ready=4), "Ready"),
        (ADMITTED, Copies(placed=4, ready=3), "Placing"),
        (ADMITTED, Copies(placed=4, ready=3, failed=1), "Degraded"),
        (ADMITTED, Copies(placed=4, ready=3, failed=1, hopeless=1), "Failed"),
        (WaveRecord("a/w", "names", 1, 1, Tier.DEVICE, position=1, reason="CapacityExceeded"), Copies(), "Pending"),
        (WaveRecord("a/w", "names", 1, 1, Tier.DEVICE, reason="CapacityExceeded"), Copies(), "Failed"),
        (WaveRecord("a/w", "names", 1, 1, Tier.DEVICE, reason="MapUnavailable"), Copies(), "Pending"),
        (WaveRecord("a/w", "names", 1, 1, Tier.DEVICE, reason="SourceConflict"), Copies(), "Failed"),
        (WaveRecord("a/w", "names", 1, 1, Tier.DEVICE, position=1, reason="PolicyConflict"), Copies(), "Pending"),
        (WaveRecord("a/w", TRAIN, 1, 1, Tier.DEVICE, reason="WaitingForCapacity"), Copies(), "Queued"),
        (WaveRecord("a/w", TRAIN, 1, 1, Tier.DEVICE, admitted=True), Copies(), "Placing"),
        (WaveRecord("a/w", "names", 1, 1, Tier.DEVICE, reason="Expired"), Copies(), "Expired"),
    ],
)
def test_a_wave_s_phase_is_kubectl_s(record: WaveRecord, copies: Copies, word: str) -> None:
    assert phase(record, copies) == word


def test_a_wave_whose_training_is_not_written_yet_waits_in_the_words_of_training() -> None:
    queued = WaveRecord("a/w", "train", 3, 1, Tier.DEVICE, position=2, reason="Waiting", message="needs 2 slots")
    seen = waves.not_training("a/base", queued)
    assert (seen.phase, seen.policies, seen.message, seen.reward) == ("Queued", 3, "needs 2 slots", None)

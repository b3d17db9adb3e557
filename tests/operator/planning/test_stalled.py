"""By the conditions Stalled and Reconciling, GitOps tools judge whether an object has failed or is in progress."""

import msgspec

from mint_contracts.records import Failure
from mint_contracts.resources import AdapterWaveStatus, WaveAdapters
from mint_operator.planning.conditions import kept
from mint_operator.planning.plan import plan
from mint_operator.planning.refusal import Refusal
from mint_operator.planning.snapshot import Listed
from tests.operator.statuses import (
    CORRUPT,
    HELD,
    NO_SOURCE,
    RETRYABLE,
    TERMINAL,
    base_after,
    ready,
    reconciling,
    stalled,
    wave_after,
)
from tests.operator.worlds import KEY, NOW, base, engine, snapshot, source, wave


def test_weights_that_are_not_there_yet_are_looked_for_again() -> None:
    """As are adapters: who judges by Stalled must not give up on what comes after the object that names it."""
    missing = [engine(each, ready=False, failure=NO_SOURCE) for each in (0, 1)]
    status = base_after(missing, [], 1)
    assert (status.phase, ready(status.conditions), stalled(status)) == ("Failed", ("False", "SourceNotFound"), "")
    both = base_after([missing[0], engine(1, ready=False, failure=CORRUPT)], [], 1)
    assert (both.phase, stalled(both)) == ("Failed", "CorruptFile"), "which no retry ends"
    absent = Failure("AdapterNotFound", "no adapter a/1", terminal=True)
    waits = wave_after([HELD[0], engine(1, failures={"a/1": absent})])
    assert (waits.phase, ready(waits.conditions), stalled(waits)) == ("Failed", ("False", "AdapterNotFound"), "")
    fails = wave_after([engine(0, failures={"a/0": absent}), engine(1, failures={"a/1": TERMINAL})])
    assert (ready(fails.conditions), stalled(fails)) == (("False", "RankTooLarge"), "RankTooLarge")


def test_what_a_store_refuses_is_stalled_although_it_is_tried_again() -> None:
    """Only a person can permit it; it comes before what may still arrive by itself."""
    refused = Failure("SourceForbidden", "403", terminal=True)
    absent = Failure("SourceNotFound", "no files", terminal=True)
    status = wave_after([engine(0, failures={"a/0": absent}), engine(1, failures={"a/1": refused})])
    assert (ready(status.conditions), stalled(status)) == (("False", "SourceForbidden"), "SourceForbidden")


def test_a_ready_base_one_engine_of_which_cannot_come_back_is_stalled() -> None:
    status = base_after([engine(0), engine(1, ready=False, failure=CORRUPT)], [], 1)
    assert (status.phase, ready(status.conditions)) == ("Ready", ("True", "EnginesReady"))
    assert (stalled(status), reconciling(status)) == ("CorruptFile", "")
    assert stalled(base_after([engine(0), engine(1, ready=False, failure=RETRYABLE)], [], 1)) == ""


def test_a_wave_that_was_ready_and_asks_now_for_what_cannot_be_looked_up_is_stalled() -> None:
    before = AdapterWaveStatus(phase="Ready", observed_generation=1)
    why = Refusal("SourceForbidden", "the manifest may not be read", terminal=True)
    of = wave("w", ["a/0", "a/1"], status=before)
    spec = msgspec.structs.replace(of.spec, adapters=WaveAdapters(manifest="s3://bucket/adapters"))
    listed = tuple(Listed(each, source(each)) for each in ("a/0", "a/1"))
    status = wave_after(HELD, of=msgspec.structs.replace(of, spec=spec, listed=listed, unread=why, from_map=True))
    assert (status.phase, ready(status.conditions)) == ("Degraded", ("False", "SourceForbidden"))
    assert (ready(status.conditions, "Progressing")[0], stalled(status)) == ("False", "SourceForbidden")


def test_a_spec_that_is_applied_again_soon_is_in_progress_although_engines_serve() -> None:
    failing = Failure("ApplyFailed", "the API server did not answer", terminal=False)
    of = msgspec.structs.replace(snapshot(base(), engines=[engine(0)]), apply_failures={KEY: failing})
    status = plan(of).base_statuses[KEY]
    assert (ready(status.conditions), reconciling(status), stalled(status)) == (
        ("True", "ApplyFailed"),
        "ApplyFailed",
        "",
    )
    unplanned = kept(status, Failure("Internal", "it could not be planned", terminal=False), 1, NOW)
    assert reconciling(unplanned) == "", "which claims nothing about now"

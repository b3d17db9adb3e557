"""What a base's status says while engines copy it or read it into memory."""

import msgspec
import pytest
from redis.asyncio import Redis

from mint_contracts.map_reader import MapReader
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import COPYING, LOADING, Bringing, EngineRecord, EngineView, Failure
from mint_contracts.resources import BaseModelStatus, LoadingStatus
from mint_operator.observing.map_view import MapView
from mint_operator.planning import status_write
from mint_operator.planning.plan import plan
from tests.operator.stage import PlayedEngine
from tests.operator.statuses import ready
from tests.operator.worlds import KEY, base, engine, snapshot, wave

GB = 10**9
HALFWAY = Bringing(COPYING, done=312 * GB, total=980 * GB, per_s=1.0 * GB)


def status_of(*engines: EngineView, low: int = 1) -> tuple[BaseModelStatus, str, str]:
    """Return the status of a base on these engines, and its Ready condition's reason and message."""
    status = plan(snapshot(base(low, 2), engines=engines)).base_statuses[KEY]
    condition = next(each for each in status.conditions if each.type == "Ready")
    return status, condition.reason, condition.message


@pytest.mark.parametrize(
    ("found", "reason", "says"),
    [
        (
            HALFWAY,
            "CopyingBase",
            "engine smol-0: 312 of 980 GB of the base copied (31%), about 11 minutes left",
        ),
        (Bringing(COPYING, 0, 980 * GB), "CopyingBase", "0 of 980 GB of the base copied (0%)"),
        (Bringing(COPYING, 5 * GB), "CopyingBase", "5.0 GB of the base copied"),
        (
            Bringing(COPYING, GB, 2000 * GB, GB / 20),
            "CopyingBase",
            "0.0 of 2.0 TB of the base copied (0%), about 11 hours left",
        ),
        (
            Bringing(LOADING, 120_000_000, 540_000_000, 50_000_000.0),
            "BaseLoading",
            "engine smol-0: 120 of 540 MB of the base read into memory (22%), about a minute left",
        ),
        (  # it is still being proven
            Bringing(LOADING, 540_000_000, 540_000_000, 50_000_000.0),
            "BaseLoading",
            "engine smol-0: 540 of 540 MB of the base read into memory (100%)",
        ),
        (Bringing("Polishing", 1, 2), "BaseLoading", "0 of 1 engines ready, 1 needed"),  # of a newer version
        (None, "BaseLoading", "0 of 1 engines ready, 1 needed"),  # of an older one
    ],
)
def test_a_base_that_comes_up_says_how_far_it_is(found: Bringing | None, reason: str, says: str) -> None:
    status, why, message = status_of(engine(0, ready=False, bringing=found))
    assert (status.phase, why) == ("Loading", reason)
    assert message.startswith("0 of 1 engines ready, 1 needed")
    assert message.endswith(says)


def test_what_fails_comes_before_what_is_copied() -> None:
    away = Failure("SourceUnavailable", "the bucket did not answer", terminal=False)
    _, reason, message = status_of(
        engine(0, ready=False, failure=away), engine(1, ready=False, bringing=HALFWAY), low=2
    )
    assert reason == "SourceUnavailable"
    assert message.index("the bucket did not answer") < message.index("312 of 980 GB")


def test_the_time_that_is_left_is_in_the_column_for_it() -> None:
    assert status_of(engine(0, ready=False, bringing=HALFWAY))[0].loading == LoadingStatus(0, 668, "11m08s")
    assert status_of(engine(0, bringing=HALFWAY))[0].loading == LoadingStatus()


def test_an_engine_that_comes_up_beside_others_is_told_of_while_the_base_answers() -> None:
    status, reason, message = status_of(engine(0), engine(1, ready=False, bringing=HALFWAY), low=2)
    assert (status.phase, reason) == ("Degraded", "CopyingBase")
    assert message.startswith("1 of 2 engines ready, 2 needed; engine smol-1: 312 of 980 GB")


def test_waves_do_not_repeat_it() -> None:
    waves = [wave("w", ["a/0"])]
    first = plan(snapshot(base(), waves, [engine(0, ready=False, bringing=HALFWAY)]))
    further = Bringing(COPYING, done=400 * GB, total=980 * GB, per_s=1.0 * GB)
    later = plan(snapshot(base(), waves, [engine(0, ready=False, bringing=further)]), first.known)
    assert ready(later.wave_statuses["team/w"].conditions) == ("False", "CopyingBase")
    assert later.wave_statuses["team/w"] == first.wave_statuses["team/w"]
    assert later.base_statuses[KEY] != first.base_statuses[KEY]


def test_it_is_written_at_the_pace_of_counts() -> None:
    first = status_of(engine(0, ready=False, bringing=HALFWAY))[0]
    further = Bringing(COPYING, done=400 * GB, total=980 * GB, per_s=1.0 * GB)
    later = status_of(engine(0, ready=False, bringing=further))[0]
    assert status_write.owed_in(first, later, 1.0) == status_write.COUNTS_EVERY_S - 1.0
    read = status_of(engine(0, ready=False, bringing=Bringing(LOADING, 0, 980 * GB)))[0]
    assert status_write.owed_in(later, read, 1.0) == 0.0


async def test_progress_is_looked_at_by_percent_and_not_by_byte(redis_client: Redis) -> None:
    view, played = (
        MapView(MapReader(redis_client), MapWriter(redis_client, 1)),
        PlayedEngine(redis_client, KEY, "smol-0"),
    )

    async def seen(done: int) -> EngineView:
        played._sequence = 0  # what it holds does not change
        await played.report(ready=False, bringing=Bringing(COPYING, done, 1000))
        return (await view.look({KEY: ["smol-0"]}))[KEY].engines[0]

    first = await seen(100)
    assert await seen(101) is first
    assert (await seen(110)).record != first.record


def test_the_word_of_an_older_engine_is_read() -> None:
    record = engine(0).record
    old = msgspec.json.decode(msgspec.json.encode(record))
    assert "bringing" not in old
    assert msgspec.json.decode(msgspec.json.encode(old), type=EngineRecord) == record

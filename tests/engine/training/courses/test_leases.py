"""A course and its lease: without a sure one nothing begins or is written; a stale one harms no newer holder."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from mint_contracts.errors import StaleLease
from mint_contracts.training_records import LEASE_TTL_S, Order, Stage
from mint_engine.policies.courses import keeping
from mint_engine.policies.courses.course import Course
from mint_engine.policies.courses.lessons import Lessons
from mint_engine.policies.stored.checkpoints import Checkpoints, Record, digest_of
from mint_engine.policies.stored.store import LocalStore, store_of
from mint_engine.rewards.scorer import Scorer
from tests.engine.training.training_engine import Gate, assignment, hold_updates, train, training
from tests.waiting import PATIENCE_S, until


async def test_without_a_sure_lease_nothing_is_begun_or_written(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease lapses while a checkpoint is being written, and is later confirmed again."""
    now, looks = 0.0, 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return now

    def lapse(blob: bytes) -> str:
        nonlocal now
        now += LEASE_TTL_S + 1
        monkeypatch.setattr(keeping, "digest_of", digest_of)
        return digest_of(blob)

    monkeypatch.setattr(keeping, "digest_of", lapse)
    async with training(base, tmp_path, train(steps=100), clock=clock) as scene:
        scene.want(assignment("acme/one"))
        course, store = scene.roster._running["acme/one"].course, store_of(scene.store)
        checkpoints = Checkpoints(store, "acme/one")
        await until(lambda: course.waits)
        at, before = course.progress.step, looks
        await until(lambda: looks >= before + 8)  # the course has checked its lease again, and it is still not sure
        assert course.progress.step == at
        assert store.names(checkpoints.folder) == []
        scene.roster.confirm()
        await until(checkpoints.newest)
        await until(lambda: course.progress.step > at)


async def test_a_course_begins_once_every_earlier_one_has_let_go(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the course in between was abandoned while waiting: the first, still closing, would drop the weights."""
    close, prepare, events, may_close = Scorer.close, Course._prepare, list[str](), asyncio.Event()

    async def close_late(self: Scorer) -> None:
        await asyncio.wait_for(may_close.wait(), PATIENCE_S)
        events.append("let go")
        await close(self)

    async def noted(self: Course) -> Lessons:
        events.append(f"lease {self.assignment.lease}")
        return await prepare(self)

    monkeypatch.setattr(Scorer, "close", close_late)
    monkeypatch.setattr(Course, "_prepare", noted)
    async with training(base, tmp_path, train(steps=5)) as scene:
        scene.want(assignment("acme/one"))
        await until(lambda: scene.roster.progress()["acme/one"].step)
        scene.want(assignment("acme/one", order=Order.PAUSE))
        await scene.ended("acme/one", stage=Stage.PAUSED)
        scene.want(assignment("acme/one"))
        scene.want(assignment("acme/one", lease=2))
        for _ in range(3):
            await scene.context.step_thread.call(lambda _: None)
        may_close.set()
        await scene.ended("acme/one")
    assert events[:3] == ["lease 1", "let go", "lease 2"]


async def test_a_trainer_under_an_old_lease_fails_and_harms_nothing(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(steps=100)) as scene:
        checkpoints = Checkpoints(store_of(scene.store), "acme/one")
        scene.want(assignment("acme/one", lease=1))
        await until(checkpoints.newest)
        checkpoints.save(Record("acme/one", "default/wave", 2, 1, digest_of(b"new")), b"new")
        assert (await scene.failed("acme/one")).reason == StaleLease.__name__
        newest = checkpoints.newest()
        assert newest is not None
        assert newest[1] == b"new"


async def test_a_policy_that_was_trained_under_a_later_lease_before_names_it(base: Path, tmp_path: Path) -> None:
    """As after a clock was put back. What earlier waves have published under its name counts, too."""
    async with training(base, tmp_path, train(steps=1)) as scene:
        await scene.complete("acme/one", lease=7)
        for late in (assignment("acme/one", lease=6), replace(assignment("acme/one", lease=5), run="another")):
            scene.want(late)
            assert (await scene.failed("acme/one")).reason == StaleLease.__name__
            assert scene.roster.progress()["acme/one"].newer_lease == 7
        scene.want(replace(assignment("acme/one", lease=8), run="another"))
        await scene.ended("acme/one")


async def test_a_revision_published_after_the_lease_ended_does_not_override_the_map(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStore.write

    def write_late(store: LocalStore, path: str, data: bytes) -> None:
        if path.startswith("revisions/"):
            writing.go_by()
        write(store, path, data)

    monkeypatch.setattr(LocalStore, "write", write_late)
    async with training(base, tmp_path, train(steps=100, publish_every_steps=1)) as scene:
        with Gate() as writing, Gate(after=1) as updating:
            hold_updates(scene, updating)
            scene.want(assignment("acme/one"))
            course = scene.roster._running["acme/one"].course
            await writing.reached()
            await updating.reached()  # the course must wait for the end of this step
            scene.want()
            writing.open()
            await until(lambda: course.progress.published)
            assert not scene.residency.lending.offered
            updating.open()
            await until(lambda: len(scene.residency.slots.free) == 10)
            assert not scene.residency.lending.offered

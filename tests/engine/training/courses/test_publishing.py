"""What a course publishes is served at once on its engine, and by another engine after that one dies."""

from pathlib import Path

import pytest

from mint_contracts.errors import SourceForbidden, SourceUnavailable
from mint_contracts.source import Source
from mint_contracts.training_records import Stage, revisions_of
from mint_engine.adapters.packed import Packed
from mint_engine.background_threads import LOWER
from mint_engine.policies import patience
from mint_engine.policies.stored import revisions
from mint_engine.policies.stored.checkpoints import BLOB, RECORD
from mint_engine.policies.stored.revisions import ENTRY
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import Content, LocalStore, store_of
from mint_engine.residency.lending import Lending
from mint_engine.sources.fetch import PACKED
from tests.engine.in_process import Engine
from tests.engine.tiers import own_nice
from tests.engine.training.training_engine import PROMPT, Gate, assignment, train, training
from tests.waiting import until


async def test_a_published_revision_is_served_at_once_without_reading_storage(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path, train(publish_every_steps=1)) as scene:
        engine = Engine(scene.slots, scene.residency._climber._loader, scene.residency, scene.stepper)
        published = (await scene.complete("acme/one")).published
        assert published is not None
        assert published.step == 3
        told = await engine.ask("acme/one", PROMPT, 4)
        assert told.revision == published.revision
        assert not scene.residency.books.disk.holds(published.source)
        scene.want()
    # Another engine, which knows nothing but the source, loads the same revision.
    async with training(base, tmp_path / "other") as other:
        loader = other.residency._climber._loader
        with loader.disk.using(published.source):
            assert loader.load(published.source).revision == published.revision


async def test_a_revision_is_served_before_an_older_one_is_swept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the revisions of steps 1 to 6, the first two are swept once 5 and 6 are served."""
    offer, delete, served, swept = Lending.offer, LocalStore.delete, list[str](), list[tuple[str, str]]()

    def seen(self: Lending, adapter: str, source: Source, packed: Packed) -> None:
        served.append(Path(source.uri).name)
        offer(self, adapter, source, packed)

    def told(self: LocalStore, path: str) -> None:
        if path.startswith(revisions_of("acme/one")):
            swept.append((Path(path).name, served[-1]))
        delete(self, path)

    monkeypatch.setattr(Lending, "offer", seen)
    monkeypatch.setattr(LocalStore, "delete", told)
    async with training(base, tmp_path, train(steps=6, publish_every_steps=1)) as scene:
        await scene.complete("acme/one")
    assert [each for each in swept if each[0] != ENTRY] == [
        (str(Name(1, step)), str(Name(1, step + revisions.KEPT))) for step in (1, 2)
    ]


async def test_a_policy_is_trained_to_its_end_though_older_revisions_may_not_be_removed(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: LocalStore, path: str) -> None:
        raise SourceForbidden(path, "may not be removed")

    monkeypatch.setattr(LocalStore, "delete", refuse)
    async with training(base, tmp_path, train(steps=revisions.KEPT + 1, publish_every_steps=1)) as scene:
        ended = await scene.complete("acme/one")
    assert (ended.failure, ended.stage) == (None, Stage.COMPLETE)
    assert ended.published is not None
    assert ended.published.step == revisions.KEPT + 1


async def test_what_is_kept_is_written_by_threads_that_give_way_to_steps(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, own, nice = LocalStore.write, own_nice(), dict[str, int]()

    def seen(self: LocalStore, path: str, content: Content) -> None:
        nice[Path(path).name] = own_nice()
        write(self, path, content)

    monkeypatch.setattr(LocalStore, "write", seen)
    async with training(base, tmp_path, train(publish_every_steps=1)) as scene:
        await scene.complete("acme/one")
    assert nice == dict.fromkeys((PACKED, ENTRY, BLOB, RECORD), min(own + LOWER, 19))


async def test_the_revision_published_after_the_checkpoint_is_served_after_a_crash(
    base: Path, tmp_path: Path
) -> None:
    async with training(base, tmp_path, train(steps=2, publish_every_steps=1)) as scene:
        published = (await scene.complete("acme/one")).published
        assert published is not None
        loader = scene.residency._climber._loader
        with loader.disk.using(published.source):
            packed = loader.load(published.source)
        later, _ = revisions.publish(store_of(scene.store), "acme/one", Name(1, 5), packed)
    async with training(base, tmp_path, train(steps=2, publish_every_steps=1)) as scene:
        assert (await scene.complete("acme/one", lease=2)).published == later


async def test_a_failure_to_publish_is_reported_also_after_a_checkpoint(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = LocalStore.write
    monkeypatch.setattr(patience, "TOLD_FROM", 1)
    monkeypatch.setattr(patience, "FIRST_RETRY_S", 60.0)
    with Gate() as gate:

        def held_up(self: LocalStore, path: str, content: Content) -> None:
            if path.startswith(revisions_of("acme/one")):
                raise SourceUnavailable("store", "does not answer")
            if path.endswith(RECORD):
                gate.go_by()
            write(self, path, content)

        monkeypatch.setattr(LocalStore, "write", held_up)
        async with training(base, tmp_path, train(steps=1)) as scene:
            scene.want(assignment("acme/one"))
            await gate.reached()
            await until(lambda: scene.roster.progress()["acme/one"].failure)
            gate.open()
            await until(lambda: scene.roster.progress()["acme/one"].saved == 1)
            failure = scene.roster.progress()["acme/one"].failure
            assert failure is not None
            assert failure.reason == "SourceUnavailable"
            scene.want()

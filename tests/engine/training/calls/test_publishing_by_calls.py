"""Of what clients publish, only the newest revisions stay in the store; over a real socket."""

from pathlib import Path

import pytest

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import MintError, SourceForbidden, SourceUnavailable
from mint_contracts.training_records import revisions_of
from mint_engine.policies.stored.revisions import ENTRY, KEPT
from mint_engine.policies.stored.store import LocalStore
from mint_engine.sources.fetch import PACKED
from tests.engine.training.calling import BASE, called


def kept(folder: Path, policy: str) -> dict[str, set[str]]:
    """Return the names of the files in the store, by revision name."""
    found = (folder / "runs" / revisions_of(policy)).iterdir()
    return {each.name: {file.name for file in each.iterdir()} for each in found}


async def test_the_newest_revisions_stay_and_older_ones_are_swept(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="acme/one", rank=4))
        for sequence in range(1, KEPT + 4):
            published = await stub.Publish(pb.PublishRequest(policy="acme/one", sequence=sequence))
        newest = [f"{made.life:016d}-{sequence:08d}" for sequence in range(4, KEPT + 4)]
        assert kept(tmp_path, "acme/one") == {name: {PACKED, ENTRY} for name in newest}
        async with scene.residency.hold("acme/one") as held:
            assert held.revision == published.revision


def announced(folder: Path) -> int:
    return len(list((folder / "runs" / "announced" / BASE).iterdir()))


@pytest.mark.parametrize("why", [SourceUnavailable, SourceForbidden])
async def test_a_revision_is_published_though_older_ones_can_not_be_removed_which_the_next_one_does(
    why: type[MintError], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: LocalStore, path: str) -> None:
        raise why(path, "cannot be removed")

    async with called(base, tmp_path) as (scene, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="acme/one", rank=4))
        for sequence in range(1, KEPT + 1):
            await stub.Publish(pb.PublishRequest(policy="acme/one", sequence=sequence))
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "delete", refuse)
            published = await stub.Publish(pb.PublishRequest(policy="acme/one", sequence=KEPT + 1))
        async with scene.residency.hold("acme/one") as held:
            assert held.revision == published.revision
        assert (len(kept(tmp_path, "acme/one")), announced(tmp_path)) == (KEPT + 1, 2)
        await stub.Publish(pb.PublishRequest(policy="acme/one", sequence=KEPT + 2))
        assert (len(kept(tmp_path, "acme/one")), announced(tmp_path)) == (KEPT, 1)

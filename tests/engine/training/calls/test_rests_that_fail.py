"""A client's policy that could not be put to rest is still there, and no other engine's; over a real socket."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mint_contracts import training_pb2 as pb
from mint_engine.policies.calls.call_checkpoints import KEPT
from mint_engine.policies.stored.checkpoints import RECORD
from mint_engine.policies.stored.store import Content, LocalStore
from tests.engine.training.calling import away, called, lesson, refused, resume, step

LEFT = b'"left":true'


def half_way(*, retold: bool) -> Callable[[LocalStore, str, Content], None]:
    """Return a store write that reports failure for a record saying that a policy was left, although it was written.

    Other records are written only if `retold`; otherwise they fail.
    """
    write = LocalStore.write

    def told(self: LocalStore, path: str, content: Content) -> None:
        left = isinstance(content, bytes) and LEFT in content
        if left or retold or not path.endswith(RECORD):
            write(self, path, content)
        if path.endswith(RECORD) and (left or not retold):
            away()

    return told


async def test_a_policy_rests_though_what_it_has_saved_before_can_not_be_swept(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        for sequence in range(1, KEPT + 1):
            await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=sequence))
        await stub.ForwardBackward(lesson("one", KEPT + 1))
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "delete", away)
            await scene.server.register.rest(0.0)
        assert not scene.server.register.made()
        assert scene.residency.lending.room.lasting == 0
        checkpoints = tmp_path / "runs" / "policies" / "one" / "calls"
        assert len(list(checkpoints.iterdir())) == KEPT + 1
        assert (await stub.ResumePolicy(resume("one", made.life))).sequence == KEPT + 1
        await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=KEPT + 2))
        assert len(list(checkpoints.iterdir())) == KEPT, "the next one sweeps"


async def test_a_policy_that_stays_is_not_released_although_its_record_said_so(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "write", half_way(retold=True))
            await scene.server.register.rest(0.0)
        assert [name for name, _ in scene.server.register.made()] == ["one"]
        async with called(base, tmp_path, engine="tiny-1") as (_, other):
            error = await refused(other.ResumePolicy(resume("one", made.life)))
            assert (error.reason, "is not what its engine saved on shutdown" in error.message) == (
                "PolicyNotFound",
                True,
            )
        await stub.ForwardBackward(lesson("one", 1))
        await scene.server.register.rest(0.0)
        assert (await stub.ResumePolicy(resume("one", made.life))).sequence == 1


async def test_what_stays_takes_no_call_before_nobody_else_can_go_on_with_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.ForwardBackward(lesson("one", 1))
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "write", half_way(retold=False))
            await scene.server.register.rest(0.0)
            assert (await refused(stub.OptimStep(step("one", 2)))).reason == "SourceUnavailable"
        assert (await stub.GetPolicy(pb.GetPolicyRequest(policy="one"))).step == 0
        assert (await stub.OptimStep(step("one", 2))).step == 1
        async with called(base, tmp_path, engine="tiny-1") as (_, other):
            assert (await refused(other.ResumePolicy(resume("one", made.life)))).reason == "PolicyNotFound"

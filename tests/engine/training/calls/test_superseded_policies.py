"""An engine cut off while another engine resumed a client's policy drops its own copy, over real sockets."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import StaleLease
from mint_contracts.source import Source
from mint_contracts.wire import from_rpc_error
from mint_engine.policies.calls import claims, lease_check
from mint_engine.policies.stored.checkpoints import RECORD, Checkpoints
from mint_engine.policies.stored.series import Series
from mint_engine.policies.stored.store import Content, LocalStore, store_of
from tests.engine.training.calling import away, called, fail_after_records, lesson, refused, step
from tests.engine.training.training_engine import Gate, Scene


@pytest.fixture
def each_call_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_check, "LOOK_S", 0.0)


def resume(life: int = 0) -> pb.ResumePolicyRequest:
    return pb.ResumePolicyRequest(policy="one", life=life)


def save(sequence: int) -> pb.SaveStateRequest:
    return pb.SaveStateRequest(policy="one", sequence=sequence)


async def saved(stub: Any) -> pb.PolicyState:
    """Create a policy, and save its state by its first call."""
    made: pb.PolicyState = await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
    await stub.SaveState(save(1))
    return made


def is_free(scene: Scene) -> bool:
    """Return whether no policy uses memory on this engine."""
    return (
        scene.server.training_bytes == scene.residency.lending.room.lasting == 0 and not scene.server.register.made()
    )


async def test_it_takes_no_memory_for_ever_and_leaves_what_the_other_engine_has_as_it_is(
    base: Path, tmp_path: Path
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await saved(stub)
        async with called(base, tmp_path, engine="tiny-1") as (there, other):
            await other.ResumePolicy(resume())
            await other.ForwardBackward(lesson("one", 2))
            await other.SaveState(save(3))
            await scene.server.register.rest(0.0)
            assert is_free(scene)
            assert (await other.OptimStep(step("one", 4))).step == 1
            await there.server.register.rest(0.0)
        told = await stub.ResumePolicy(resume(made.life))
        assert (told.sequence, told.step) == (4, 1)


@pytest.mark.usefixtures("each_call_looks")
async def test_it_acknowledges_nothing_more_and_lets_go_before_the_other_one_has_saved_anything(
    base: Path, tmp_path: Path
) -> None:
    async with called(base, tmp_path) as (scene, stub):
        await saved(stub)
        await stub.ForwardBackward(lesson("one", 2))
        async with called(base, tmp_path, engine="tiny-1") as (_, other):
            assert (await other.ResumePolicy(resume())).sequence == 1
            error = await refused(stub.ForwardBackward(lesson("one", 2)))
            assert (error.reason, "was resumed on another engine" in error.message) == ("PolicyNotFound", True), (
                "a repeat, too"
            )
            assert is_free(scene)
            assert (await refused(stub.OptimStep(step("one", 3)))).reason == "PolicyNotFound"
            assert (await other.ForwardBackward(lesson("one", 2))).tokens == 3


async def test_no_checkpoint_is_acknowledged_that_the_other_engine_did_not_go_on_from(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is still being written while the other engine resumes."""
    async with called(base, tmp_path) as (scene, stub):
        await saved(stub)
        await stub.ForwardBackward(lesson("one", 2))
        with Gate() as gate, monkeypatch.context() as patch:
            write = LocalStore.write

            def held_up(self: LocalStore, path: str, content: Content) -> None:
                if path.endswith(f"-00000003/{RECORD}"):
                    gate.go_by()
                write(self, path, content)

            patch.setattr(LocalStore, "write", held_up)
            saving = asyncio.ensure_future(stub.SaveState(save(3)))
            await gate.reached()
            async with called(base, tmp_path, engine="tiny-1") as (_, other):
                assert (await other.ResumePolicy(resume())).sequence == 1
                gate.open()
                assert (await refused(saving)).reason == "PolicyNotFound"
                assert is_free(scene)


async def test_a_checkpoint_that_is_acknowledged_while_another_engine_reads_the_one_before_is_gone_on_from(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (_, stub), called(base, tmp_path, engine="tiny-1") as (there, other):
        await saved(stub)
        with Gate() as gate, monkeypatch.context() as patch:
            claim = Series.claim

            def late(self: Series, lease: int) -> None:
                gate.go_by()
                claim(self, lease)

            patch.setattr(Series, "claim", late)
            resuming = asyncio.ensure_future(other.ResumePolicy(resume()))
            await gate.reached()
            await stub.SaveState(save(2))
            gate.open()
            error = await refused(resuming)
            assert (error.reason, bool(error.retry_after_s)) == ("EngineUnavailable", True)
            assert error.message == "was just saved by the engine that has or had it; retry"
            assert is_free(there)
        assert (await stub.SaveState(save(3))).uri, "which leaves the policy to its engine"
        assert (await other.ResumePolicy(resume())).sequence == 3


async def test_exactly_one_of_two_engines_resumes_a_policy(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        made = await saved(stub)
        await scene.server.register.rest(0.0)
        async with called(base, tmp_path, engine="tiny-1") as (there, other), asyncio.timeout(60):

            async def resumed(by: Any, again_s: float) -> bool:
                while True:
                    try:
                        await by.ResumePolicy(resume(made.life))
                    except grpc.aio.AioRpcError as error:
                        if from_rpc_error(error).reason != "EngineUnavailable":
                            return False
                        await asyncio.sleep(again_s)
                    else:
                        return True

            has = await asyncio.gather(resumed(stub, 0.02), resumed(other, 0.2))
            assert sorted(has) == [False, True]
            assert [is_free(scene), is_free(there)] == [not each for each in has]


async def test_who_begins_to_go_on_with_a_policy_beside_another_one_is_to_try_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other engine may see the same and give way, too, so that neither has the policy."""
    claim, others = Series.claim, list[tuple[Series, int]]()

    def beside(self: Series, lease: int) -> None:
        claim(self, lease - 1)
        others.append((self, lease - 1))
        claim(self, lease)

    async with called(base, tmp_path) as (scene, stub):
        made = await saved(stub)
        await scene.server.register.rest(0.0)
        with monkeypatch.context() as patch:
            patch.setattr(Series, "claim", beside)
            error = await refused(stub.ResumePolicy(resume(made.life)))
        assert (error.reason, bool(error.retry_after_s)) == ("EngineUnavailable", True)
        assert error.message == "is being resumed by another engine; retry"
        [(series, lease)] = others
        leases = Series.leases

        def then_taken_back(self: Series) -> list[int]:
            found = leases(self)
            series.unclaim(lease)
            return found

        monkeypatch.setattr(claims, "RETRY_S", 0.0)
        monkeypatch.setattr(Series, "leases", then_taken_back)
        assert (await stub.ResumePolicy(resume(made.life))).sequence == 1


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_resume_that_its_store_has_interrupted_bars_nobody_from_another_one(
    elsewhere: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupted engine cannot withdraw its claim on the policy either before the store answers again."""
    claim = Series.claim
    async with called(base, tmp_path) as (scene, stub), called(base, tmp_path, engine="tiny-1") as (_, other):
        made = await saved(stub)
        await scene.server.register.rest(0.0)
        with monkeypatch.context() as patch:

            def then_away(self: Series, lease: int) -> None:
                claim(self, lease)
                for name in ("names", "delete"):
                    patch.setattr(LocalStore, name, away)

            patch.setattr(Series, "claim", then_away)
            assert (await refused(stub.ResumePolicy(resume(made.life)))).reason == "SourceUnavailable"
        if elsewhere:
            await scene.server.register.rest(0.0)
        told = await (other if elsewhere else stub).ResumePolicy(resume(made.life))
        assert (told.life, told.sequence) == (made.life, 1)


@pytest.mark.usefixtures("each_call_looks")
async def test_while_the_store_is_away_calls_go_on_for_a_while_and_then_wait_for_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with called(base, tmp_path) as (_, stub):
        await saved(stub)
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "names", away)
            await stub.ForwardBackward(lesson("one", 2))
            patch.setattr(lease_check, "SURE_S", 0.0)
            error = await refused(stub.OptimStep(step("one", 3)))
            assert (error.reason, bool(error.retry_after_s)) == ("SourceUnavailable", True)
        assert (await stub.OptimStep(step("one", 3))).step == 1


async def test_a_call_for_another_lease_is_refused_and_one_that_tells_none_is_not(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        made = await saved(stub)
        for lease in (made.lease - 1, made.lease + 1):
            error = await refused(stub.ForwardBackward(lesson("one", 2, lease=lease)))
            assert (error.reason, f"not {lease}" in error.message) == ("PolicyNotFound", True)
        first = await stub.ForwardBackward(lesson("one", 2, lease=made.lease))
        assert await stub.ForwardBackward(lesson("one", 2)) == first
        assert (await stub.GetPolicy(pb.GetPolicyRequest(policy="one"))).sequence == 2


async def test_what_was_left_is_not_gone_on_with_again_behind_the_back_of_who_has_learnt_since(
    base: Path, tmp_path: Path
) -> None:
    """The other engine was killed before it had saved anything."""
    async with called(base, tmp_path) as (scene, stub):
        made = await saved(stub)
        await scene.server.register.rest(0.0)
        async with called(base, tmp_path, engine="tiny-1") as (_, other):
            assert (await other.ResumePolicy(resume(made.life))).sequence == 1
            await other.ForwardBackward(lesson("one", 2))
        error = await refused(stub.ResumePolicy(resume(made.life)))
        assert (error.reason, "resume it by name alone" in error.message) == ("PolicyNotFound", True)
        assert (await stub.ResumePolicy(resume())).sequence == 1


async def test_who_resumes_it_where_it_was_cut_off_has_what_was_saved_elsewhere(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        made = await saved(stub)
        async with called(base, tmp_path, engine="tiny-1") as (there, other):
            resumed = await other.ResumePolicy(resume())
            assert (resumed.taken_up, resumed.lease > made.lease) == (1, True)
            await other.ForwardBackward(lesson("one", 2))
            await there.server.register.rest(0.0)
        told = await stub.ResumePolicy(resume(made.life))
        assert (told.life, told.sequence, told.taken_up, told.lease > resumed.lease) == (made.life, 2, 2, True)


async def test_what_could_not_be_let_go_of_and_was_gone_on_with_elsewhere_takes_no_call(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store wrote the record that says it was left, but reported a failure to the engine."""
    async with called(base, tmp_path) as (scene, stub):
        made = await saved(stub)
        with monkeypatch.context() as patch:
            fail_after_records(patch)
            patch.setattr(LocalStore, "delete", away)
            await scene.server.register.rest(0.0)
        assert not is_free(scene)
        async with called(base, tmp_path, engine="tiny-1") as (_, other):
            assert (await other.ResumePolicy(resume(made.life))).sequence == 1
            assert (await refused(stub.ForwardBackward(lesson("one", 2)))).reason == "PolicyNotFound"
            assert is_free(scene)


@pytest.mark.parametrize("anew", [False, True])
async def test_its_name_does_not_come_to_mean_what_nobody_goes_on_with(
    anew: bool, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds whether or not the other engine has published by then, although no lease check is due."""
    monkeypatch.setattr(lease_check, "LOOK_S", 3600.0)
    publish = pb.PublishRequest(policy="one", sequence=2)
    async with called(base, tmp_path) as (scene, stub):
        await saved(stub)
        async with called(base, tmp_path, engine="tiny-1") as (there, other):
            await other.ResumePolicy(resume())
            meant = {"one": (await other.Publish(publish)).uri} if anew else {}
            error = await refused(stub.Publish(publish))
            assert (error.reason, "was resumed on another engine" in error.message) == ("PolicyNotFound", True)
            assert is_free(scene)
            cache = there.server.register.here.announcement_cache
            await cache.look()
            assert {policy: source.uri for policy, source in cache.known.items()} == meant


def test_two_engines_that_give_way_to_each_other_leave_no_word_of_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have claimed the same lease, and each has seen the other's claim before either withdrew its own."""
    (tmp_path / "runs").mkdir()
    checkpoints = Checkpoints(store_of(Source(f"file://{tmp_path}/runs")), "one")
    write, delete = LocalStore.write, LocalStore.delete

    def beside(self: LocalStore, path: str, content: Content) -> None:
        write(self, path, content)
        write(self, path + "-other", content)

    def both(self: LocalStore, path: str) -> None:
        delete(self, path + "-other")
        delete(self, path)

    monkeypatch.setattr(LocalStore, "write", beside)
    monkeypatch.setattr(LocalStore, "delete", both)
    with pytest.raises(StaleLease, match="is also being taken"):
        checkpoints.series.claim(7)
    assert checkpoints.series.leases() == []

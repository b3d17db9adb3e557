"""The Trainer service over a real socket: each call counts once, in order."""

import asyncio
import contextlib
from collections.abc import Sequence
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from mint_contracts import training_pb2 as pb
from mint_contracts.training_records import revisions_of
from mint_engine.policies.calls.call_checkpoints import RUN
from mint_engine.policies.stored.checkpoints import Checkpoints
from mint_engine.policies.stored.store import store_of
from mint_engine.training.trainer import Trainer
from tests.engine.training.calling import called, lesson, refused, step
from tests.engine.training.training_engine import Gate, Scene, assignment, training, weights
from tests.waiting import until


def state_of(scene: Scene, policy: str) -> bytes:
    """Return the state in the newest checkpoint of a wave's policy."""
    found = Checkpoints(store_of(scene.store), policy).newest()
    assert found is not None
    return found[1]


async def test_calls_train_and_a_repeat_changes_nothing_and_gets_the_same_answer(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        for name in ("one", "two"):
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=4, alpha=8, seed=3))
        losses: dict[str, list[float]] = {"one": [], "two": []}
        for at in range(6):
            for name, times in (("one", 1), ("two", 3)):
                told = [await stub.ForwardBackward(lesson(name, 2 * at + 1)) for _ in range(times)]
                steps = [await stub.OptimStep(step(name, 2 * at + 2)) for _ in range(times)]
                assert all(each == told[0] for each in told)
                assert all(each == steps[0] for each in steps)
                assert steps[0].step == at + 1
                losses[name].append(told[0].loss_sum)
        assert losses["one"] == losses["two"]
        assert losses["one"][-1] < losses["one"][0]
        assert told[0].tokens == 3
        assert told[0].logprobs[0].values[0] == 0.0


async def test_a_repeat_of_what_saves_loads_or_publishes_changes_nothing(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.ForwardBackward(lesson("one", 1))
        save = pb.SaveStateRequest(policy="one", sequence=2)
        saved = await stub.SaveState(save)
        await stub.OptimStep(step("one", 3))
        assert await stub.SaveState(save) == saved
        publish = pb.PublishRequest(policy="one", sequence=4)
        published = await stub.Publish(publish)
        load = pb.LoadStateRequest(policy="one", sequence=5, uri=saved.uri)
        loaded = await stub.LoadState(load)
        stepped = await stub.OptimStep(step("one", 6))
        learnt = await weights(scene, "one")
        assert await stub.LoadState(load) == loaded
        assert await stub.Publish(publish) == published
        assert await stub.OptimStep(step("one", 6)) == stepped
        assert await weights(scene, "one") == learnt
        store = store_of(scene.store)
        assert len(store.names(Checkpoints(store, "one", RUN).folder)) == 1
        assert len(store.names(revisions_of("one"))) == 1


async def test_a_name_is_one_policys_whoever_asks_for_it_with_other_settings(base: Path, tmp_path: Path) -> None:
    def asked(**changes: Any) -> pb.CreatePolicyRequest:
        options: dict[str, Any] = {"policy": "one", "rank": 4, "alpha": 8, "target_modules": ["v_proj", "q_proj"]}
        return pb.CreatePolicyRequest(**(options | changes))

    async with called(base, tmp_path) as (_, stub):
        first = await stub.CreatePolicy(asked())
        assert await stub.CreatePolicy(asked(target_modules=["q_proj", "v_proj"])) == first
        for changes, what in {"rank": 8, "alpha": 16, "seed": 5, "target_modules": ["q_proj"]}.items():
            error = await refused(stub.CreatePolicy(asked(**{changes: what})))
            assert error.reason == "InvalidRequest"
            assert f"exists with {changes} " in error.message


async def test_calls_of_an_earlier_life_are_refused_and_leave_the_later_one_alone(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        create = pb.CreatePolicyRequest(policy="one", rank=4)
        first = (await stub.CreatePolicy(create)).life
        await stub.DropPolicy(pb.DropPolicyRequest(policy="one", life=first))
        later = (await stub.CreatePolicy(create)).life
        for delayed in (
            stub.ForwardBackward(lesson("one", 1, life=first)),
            stub.SaveState(pb.SaveStateRequest(policy="one", sequence=1, life=first)),
            stub.DropPolicy(pb.DropPolicyRequest(policy="one", life=first)),
        ):
            error = await refused(delayed)
            assert (error.reason, f"this is life {later}" in error.message) == ("PolicyNotFound", True)
        assert (await stub.ForwardBackward(lesson("one", 1, life=later))).tokens == 3
        saved = await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=2))
        assert (await stub.LoadState(pb.LoadStateRequest(policy="one", sequence=3, uri=saved.uri))).life == later


async def test_a_gap_and_a_forgotten_repeat_are_refused(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        error = await refused(stub.ForwardBackward(lesson("one", 2)))
        assert (error.reason, "comes too early; the next is 1") == ("OutOfOrder", error.message.split("call 2 ")[1])
        for unset in (0, -1):
            error = await refused(stub.ForwardBackward(lesson("one", unset)))
            assert error.reason == "OutOfOrder"
            assert error.message.endswith(f"has no call {unset}: calls are numbered from 1; the next is 1")
        failed = await refused(stub.OptimStep(step("one", 1)))
        assert failed.reason == "InvalidRequest"
        for at in range(1, 20):
            await stub.ForwardBackward(lesson("one", at))
        error = await refused(stub.ForwardBackward(lesson("one", 1)))
        assert error.reason == "OutOfOrder"
        assert "is too old: its answer is no longer kept; the next is 20 (another program trains it" in error.message


async def test_a_saved_policy_resumes_with_the_same_numbers(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.ForwardBackward(lesson("one", 1))
        await stub.OptimStep(step("one", 2))
        saved = await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=3))
        first = await stub.ForwardBackward(lesson("one", 4))
        await stub.OptimStep(step("one", 5))
        state = await stub.LoadState(pb.LoadStateRequest(policy="one", sequence=6, uri=saved.uri))
        assert (state.step, state.sequence) == (1, 6)
        assert (await stub.ForwardBackward(lesson("one", 7))) == first
        other = await refused(stub.LoadState(pb.LoadStateRequest(policy="one", sequence=8, uri="file:///etc/passwd")))
        assert other.reason == "SourceForbidden"
        gone = saved.uri[:-1] + "9"
        assert (
            await refused(stub.LoadState(pb.LoadStateRequest(policy="one", sequence=8, uri=gone)))
        ).reason == "SourceNotFound"
        published = await stub.Publish(pb.PublishRequest(policy="one", sequence=8))
        assert published.revision.startswith("sha256:")


async def test_a_batch_in_several_calls_is_that_in_one_whatever_their_longest_completions(
    base: Path, tmp_path: Path
) -> None:
    def sampled(tokens: int) -> pb.Example:
        silent, told = [0.0, 0.0], [1.0] * tokens
        return pb.Example(
            tokens=range(5, 7 + tokens), targets=range(6, 8 + tokens), weights=silent + told,
            sampler_logprobs=silent + [-3.0] * tokens, advantages=silent + told,
        )  # fmt: skip

    short, long = sampled(2), sampled(6)
    async with called(base, tmp_path) as (_, stub):
        norms = []
        for policy, calls in {"one": [[short, long]], "two": [[short], [long]]}.items():
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy=policy, rank=4))
            for at, examples in enumerate(calls, start=1):
                told = lesson(policy, at, examples=examples, loss="dr_grpo", completion_tokens=16)
                await stub.ForwardBackward(told)
            norms.append((await stub.OptimStep(step(policy, len(calls) + 1))).grad_norm)
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)


async def test_a_step_whose_client_goes_away_is_taken_to_its_end_and_counts_once(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        updates = scene.updates
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.ForwardBackward(lesson("one", 1))
        with Gate() as gate:
            advance = updates._steps.advance

            def held_up() -> None:
                gate.go_by()
                advance()

            updates._steps.advance = held_up  # type: ignore[method-assign]
            abandoned = stub.OptimStep(step("one", 2))
            await gate.reached()
            abandoned.cancel()
            again = stub.OptimStep(step("one", 2))
            await until(lambda: scene.server.register._calls["one"]._turn._waiters)
            gate.open()
            assert (await again).step == 1
        assert (await stub.OptimStep(step("one", 2))).step == 1
        await stub.ForwardBackward(lesson("one", 3))
        assert (await stub.OptimStep(step("one", 4))).step == 2


@pytest.mark.parametrize("broken", [True, False])
async def test_an_engine_that_only_trains_notices_that_its_device_computes_nothing_any_more(
    base: Path, tmp_path: Path, *, broken: bool
) -> None:
    """For example after a fault that the device reports on every call; a defect in training alone ends nothing."""

    def refuse(*_: object) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    async with called(base, tmp_path) as (scene, stub):
        updates = scene.updates
        ranks: Any = updates.trainer._ranks
        serves, trains = scene.server.generation._forward._pass, ranks._pass
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        with pytest.MonkeyPatch.context() as patched, capture_logs():
            patched.setattr(trains, "run", refuse)
            if broken:
                patched.setattr(serves, "run", refuse)
            failed = await refused(stub.ForwardBackward(lesson("one", 1)))
        assert failed.reason == ("EngineUnavailable" if broken else "Internal")
        if broken:
            async with asyncio.timeout(60):
                await scene.server.lost.wait()
        assert scene.server.ready is not broken
        assert (await stub.ForwardBackward(lesson("one", 1))).tokens == 3


async def test_a_learning_rate_of_nothing_is_taken_at_its_word(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        first = await stub.ForwardBackward(lesson("one", 1))
        still = await stub.OptimStep(pb.OptimStepRequest(policy="one", sequence=2, learning_rate=0.0))
        assert still.step == 1
        assert await stub.ForwardBackward(lesson("one", 3)) == first
        await stub.OptimStep(pb.OptimStepRequest(policy="one", sequence=4))
        assert await stub.ForwardBackward(lesson("one", 5)) != first


@pytest.mark.parametrize(("given", "shares"), [({}, (0.1, 0.05)), ({"beta1": 0.0, "beta2": 0.0}, (1.0, 1.0))])
async def test_moments_that_keep_nothing_are_taken_at_their_word(
    base: Path, tmp_path: Path, given: dict[str, Any], shares: tuple[float, float]
) -> None:
    """Of a first step, each moment holds this share of the gradient or its square."""
    async with called(base, tmp_path) as (scene, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.ForwardBackward(lesson("one", 1))
        norm = (await stub.OptimStep(pb.OptimStepRequest(policy="one", sequence=2, **given))).grad_norm

        def moments(trainer: Trainer) -> tuple[float, float]:
            policy = trainer.policy("one")
            return float(policy.exp_avg.norm()) / norm, float(policy.exp_avg_sq.sum()) / norm**2

        assert await scene.context.step_thread.call(moments) == pytest.approx(shares, rel=1e-4)


async def test_calls_may_weigh_all_tokens_of_an_example_alike(base: Path, tmp_path: Path) -> None:
    """The first one clips nothing. A later one clips how far the policy has moved since."""
    example = pb.Example(
        tokens=[5, 6, 7, 8], targets=[6, 7, 8, 9], weights=[0, 1, 1, 1], sampler_logprobs=[0, -4, -5, -6],
        advantages=[0, 2, 2, 2],
    )  # fmt: skip
    gspo = {"loss": "dapo", "clip_high": 1e-4, "importance_sampling_level": "sequence"}

    def factor(over: Sequence[float], under: Sequence[float]) -> float:
        return exp(fmean(now - then for now, then in zip(over[1:], under[1:], strict=True)))

    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        first = await stub.ForwardBackward(lesson("one", 1, examples=[example], **gspo))
        old = list(first.logprobs[0].values)
        sampled = factor(old, example.sampler_logprobs)
        assert first.loss_sum == pytest.approx(-3 * 2 * sampled, rel=1e-5)
        assert (first.metrics["clipped"], first.metrics["ratio"]) == (0.0, pytest.approx(sampled, rel=1e-5))
        await stub.OptimStep(step("one", 2))
        example.old_logprobs.extend(old)
        second = await stub.ForwardBackward(lesson("one", 3, examples=[example], **gspo))
        assert factor(second.logprobs[0].values, old) > 1 + 1e-4
        assert second.loss_sum == pytest.approx(-3 * 2 * (1 + 1e-4) * sampled, rel=1e-5)
        assert second.metrics["clipped"] == 1.0
        example.old_logprobs.pop()
        error = await refused(stub.ForwardBackward(lesson("one", 4, examples=[example], **gspo)))
        assert "has 3 old_logprobs for 4 tokens; give one each" in str(error)


async def test_a_dropped_policys_call_under_way_reaches_none_of_the_same_name(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        updates = scene.updates
        ripe, updates._ripe = updates._ripe, lambda: False  # type: ignore[method-assign]
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        abandoned = stub.ForwardBackward(lesson("one", 1))
        await until(lambda: updates._ready)
        abandoned.cancel()
        dropping = asyncio.create_task(_drop(stub, "one"))
        await until(lambda: scene.server.register._calls["one"]._turn._waiters)
        assert not dropping.done()
        updates._ripe = ripe  # type: ignore[method-assign]
        scene.context.step_thread._wake()
        await dropping
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.ForwardBackward(lesson("one", 1))
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="two", rank=4))
        await stub.ForwardBackward(lesson("two", 1))
        one, two = [await stub.OptimStep(step(policy, 2)) for policy in ("one", "two")]
        assert (one.step, one.grad_norm) == (1, two.grad_norm), "one gradient, not two"


async def test_a_wave_that_takes_a_name_over_learns_from_no_call_of_it(base: Path, tmp_path: Path) -> None:
    async with training(base, tmp_path / "alone") as scene:
        await scene.complete("acme/one")
        undisturbed = state_of(scene, "acme/one")
    async with called(base, tmp_path) as (scene, stub):
        updates = scene.updates
        ripe, updates._ripe = updates._ripe, lambda: False  # type: ignore[method-assign]
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="acme/one", rank=4))
        sampled = pb.Example(
            tokens=[5, 6, 7], targets=[6, 7, 8], weights=[0, 1, 1], sampler_logprobs=[0, -3, -3], advantages=[0, 1, 1]
        )
        under_way = stub.ForwardBackward(lesson("acme/one", 1, loss="dapo", examples=[sampled]))
        await until(lambda: updates._ready)
        scene.want(assignment("acme/one"))
        await until(lambda: scene.server.register._calls["acme/one"]._turn._waiters)
        updates._ripe = ripe  # type: ignore[method-assign]
        scene.context.step_thread._wake()
        await under_way
        await scene.ended("acme/one")
        assert state_of(scene, "acme/one") == undisturbed
        scene.want()
        assert (await refused(stub.OptimStep(step("acme/one", 2)))).reason == "PolicyNotFound"


async def test_a_policy_whose_client_goes_away_is_made_or_not_known(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        with Gate() as making:
            holding = asyncio.create_task(scene.context.step_thread.call(lambda _: making.go_by()))
            await making.reached()
            abandoned = stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=99))
            await until(lambda: "one" in scene.server.register._calls)
            abandoned.cancel()
            with pytest.raises(asyncio.CancelledError):
                await abandoned
            again = stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
            making.open()
            await holding
        with contextlib.suppress(grpc.aio.AioRpcError):  # refused if it came before the first had failed
            await again
        await until(lambda: not scene.server.register._making)  # until then the next one would be refused, too
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        assert (await stub.ForwardBackward(lesson("one", 1))).tokens == 3


async def test_a_policy_made_anew_writes_over_nothing_that_its_namesake_saved(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        saved = []
        for steps in (1, 0):
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
            await stub.ForwardBackward(lesson("one", 1))
            await (stub.OptimStep(step("one", 2)) if steps else stub.ForwardBackward(lesson("one", 2)))
            saved.append((await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=3))).uri)
            await _drop(stub, "one")
        assert len(set(saved)) == 2
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        state = await stub.LoadState(pb.LoadStateRequest(policy="one", sequence=1, uri=saved[0]))
        assert state.step == 1


async def _drop(stub: Any, policy: str) -> None:
    await stub.DropPolicy(pb.DropPolicyRequest(policy=policy))

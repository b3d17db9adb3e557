"""What the Trainer service refuses, over a real socket: each refusal names the call's field or object, and why."""

from math import inf, nan
from pathlib import Path
from typing import Any

from mint_contracts import training_pb2 as pb
from mint_engine.policies.calls.primitives import MOST_EXAMPLES
from tests.engine.running import CONTEXT
from tests.engine.training.calling import called, lesson, refused, step
from tests.engine.training.training_engine import assignment, train
from tests.waiting import until


async def test_a_number_that_a_call_may_not_have_is_named(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        for numbers, says in (
            ({"clip_high": -0.5}, "has clip_high -0.5; give a finite number that is not negative"),
            ({"clip_low": nan}, "has clip_low nan; give a finite number that is not negative"),
            ({"kl_coefficient": inf}, "has kl_coefficient inf; give a finite number that is not negative"),
            ({"ratio_low": 5.0, "ratio_high": 2.0}, "has ratio_low 5 above ratio_high 2, which leaves no tokens"),
        ):
            error = await refused(stub.ForwardBackward(lesson("one", 1, loss="ppo", **numbers)))
            assert (error.reason, str(error)) == ("InvalidRequest", f"loss: {says}")
        for name, number, says in (
            ("learning_rate", nan, "nan; give a finite number that is not negative"),
            ("weight_decay", -1.0, "-1; give a finite number that is not negative"),
            ("beta2", 1.0, "1; give a number from 0 to less than 1"),
        ):
            wrong_step = step("one", 1)
            setattr(wrong_step, name, number)
            error = await refused(stub.OptimStep(wrong_step))
            assert (error.reason, str(error)) == ("InvalidRequest", f"optimizer: has {name} {says}")


async def test_a_level_of_importance_sampling_that_a_loss_has_not_is_named(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        for kind, level, says in (
            ("grpo", "sentence", "has importance_sampling_level 'sentence'; it is token or sequence"),
            (
                "ppo",
                "sequence",
                "is ppo, which only has importance_sampling_level token; choose that, or one of grpo,",
            ),
        ):
            error = await refused(stub.ForwardBackward(lesson("one", 1, loss=kind, importance_sampling_level=level)))
            assert error.reason == "InvalidRequest"
            assert str(error).startswith(f"loss: {says}")


async def test_wrong_calls_are_refused(base: Path, tmp_path: Path) -> None:
    async with called(base, tmp_path) as (scene, stub):
        assert (await refused(stub.ForwardBackward(lesson("one", 1)))).reason == "PolicyNotFound"
        assert (await refused(stub.CreatePolicy(pb.CreatePolicyRequest(policy="../x")))).reason == "InvalidRequest"
        assert (
            await refused(stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=99)))
        ).reason == "RankTooLarge"
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        many = [pb.Example(tokens=[5], targets=[6])] * 1025
        wrong: list[dict[str, Any]] = [{"examples": many}, {"examples": []}, {"loss": "guess"}]
        for changes in wrong:
            assert (await refused(stub.ForwardBackward(lesson("one", 1, **changes)))).reason == "InvalidRequest"
        good: dict[str, Any] = {"sampler_logprobs": [nan, -1, -1], "advantages": [inf, 1, 1]}
        for name, number in (("sampler_logprobs", -inf), ("advantages", nan)):
            spoiled = good | {name: [0, 1, number]}
            example = pb.Example(tokens=[5, 6, 7], targets=[6, 7, 8], weights=[0, 1, 1], **spoiled)
            error = await refused(stub.ForwardBackward(lesson("one", 1, loss="ppo", examples=[example])))
            assert (error.reason, error.subject) == ("InvalidRequest", "policy one, example 0")
            assert error.message == f"has {name} that are not finite where its weights are not 0"
        long = [5] * (CONTEXT + 1)  # within the base's context, but more than the engine is sized for
        error = await refused(
            stub.ForwardBackward(lesson("one", 1, examples=[pb.Example(tokens=long, targets=long)]))
        )
        most = f"{CONTEXT} (the base's engine.contextLength)"
        assert error.message.endswith(f"has {CONTEXT + 1} tokens; give at least 1, and no more than {most}")
        scene.want(assignment("acme/wave"), told=train(steps=1000))
        await until(lambda: scene.roster.progress()["acme/wave"].step)
        error = await refused(stub.DropPolicy(pb.DropPolicyRequest(policy="acme/wave")))
        assert "trained by a wave" in error.message
        await stub.DropPolicy(pb.DropPolicyRequest(policy="one"))
        assert (await refused(stub.ForwardBackward(lesson("one", 1)))).reason == "PolicyNotFound"


async def test_a_call_of_as_many_tokens_as_are_allowed_is_read_whatever_they_are(base: Path, tmp_path: Path) -> None:
    highest, floats = [(1 << 31) - 1] * 256, [0.1] * 256
    example = pb.Example(tokens=highest, targets=highest, weights=floats, sampler_logprobs=floats, advantages=floats)
    async with called(base, tmp_path) as (_, stub):
        error = await refused(stub.ForwardBackward(lesson("nobody", 1, examples=[example] * MOST_EXAMPLES)))
        assert error.reason == "PolicyNotFound"

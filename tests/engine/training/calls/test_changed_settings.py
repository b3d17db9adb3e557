"""A BaseModel's settings change while its policies rest: compatible ones resume; others are refused, by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from structlog.testing import capture_logs

from mint_contracts import training_pb2 as pb
from mint_contracts.errors import WrongBase
from mint_engine.adapters.packed import fingerprint
from mint_engine.model.modules import find_modules
from mint_engine.training import state
from mint_engine.training.example import PolicyBatch
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.training.at_once import create, restore, saved_of, step_all
from tests.engine.training.calling import called, lesson, refused, step
from tests.engine.training.scene import CPU, LLAMA, OPTIMIZER, awaken, base_of, groups, learn
from tests.engine.training.training_engine import assignment, train

NARROW, WIDE = ("q_proj", "v_proj"), ("q_proj", "v_proj", "o_proj")


async def test_a_saved_policy_of_a_rank_that_slots_take_no_more_is_refused_before_it_learns(
    base: Path, tmp_path: Path
) -> None:
    async with called(base, tmp_path) as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=16))
        await stub.ForwardBackward(lesson("one", 1))
        await stub.OptimStep(step("one", 2))
        saved = await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=3))
    async with called(base, tmp_path, max_rank=8) as (_, stub):
        error = await refused(stub.ResumePolicy(pb.ResumePolicyRequest(policy="one")))
        assert (error.reason, error.subject) == ("RankTooLarge", "policy one")
        assert "rank 16; the base model takes up to 8. Raise adapters.maxRank" in error.message
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=8))
        error = await refused(stub.LoadState(pb.LoadStateRequest(policy="one", sequence=1, uri=saved.uri)))
        assert (error.reason, error.subject) == ("RankTooLarge", "policy one")
        assert (await stub.ForwardBackward(lesson("one", 1))).tokens == 3
    async with called(base, tmp_path) as (_, stub):
        assert (await stub.ResumePolicy(pb.ResumePolicyRequest(policy="one"))).step == 1


@pytest.mark.parametrize(("before", "now"), [(NARROW, WIDE), (WIDE, NARROW)])
async def test_policies_go_on_when_a_base_offers_other_modules_and_still_all_of_theirs(
    base: Path, tmp_path: Path, before: tuple[str, ...], now: tuple[str, ...]
) -> None:
    """Covers a wave's policy under its next lease, and a client's policy that the client resumes."""
    ours = list(NARROW)
    async with called(base, tmp_path, target_modules=before) as (scene, stub):
        scene.want(assignment("acme/wave", rank=4, target_modules=ours), told=train(steps=2))
        await scene.ended("acme/wave")
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4, target_modules=ours))
        await stub.ForwardBackward(lesson("one", 1))
        await stub.OptimStep(step("one", 2))
        await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=3))
    async with called(base, tmp_path, target_modules=now) as (scene, stub):
        assert (await stub.ResumePolicy(pb.ResumePolicyRequest(policy="one"))).step == 1
        await stub.ForwardBackward(lesson("one", 4))
        assert (await stub.OptimStep(step("one", 5))).step == 2
        told = assignment("acme/wave", lease=2, saved=2, rank=4, target_modules=ours)
        scene.want(told, told=train(steps=4))
        assert (await scene.ended("acme/wave"))["acme/wave"].step == 4


async def test_a_policy_of_a_module_that_is_offered_no_more_is_told_which_to_offer_again(
    base: Path, tmp_path: Path
) -> None:
    async with called(base, tmp_path, target_modules=WIDE) as (scene, stub):
        scene.want(assignment("acme/wave", rank=4), told=train(steps=2))
        await scene.ended("acme/wave")
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="one", rank=4))
        await stub.SaveState(pb.SaveStateRequest(policy="one", sequence=1))
    async with called(base, tmp_path, target_modules=NARROW) as (scene, stub):
        error = await refused(stub.ResumePolicy(pb.ResumePolicyRequest(policy="one")))
        assert (error.reason, error.subject) == ("WrongBase", "policy one")
        says = (
            "was trained on model.layers.0.self_attn.o_proj and 1 more, which adapters.targetModules of the BaseModel"
        )
        assert error.message.startswith(says)
        assert error.message.endswith("Add o_proj to targetModules, then resume the policy")
        scene.want(assignment("acme/wave", lease=2, saved=2, rank=4), told=train(steps=4))
        failure = await scene.failed("acme/wave")
        assert says in failure.message
    async with called(base, tmp_path, target_modules=WIDE) as (_, stub):
        await stub.ResumePolicy(pb.ResumePolicyRequest(policy="one"))


def trainer_over(*leaves: str) -> Trainer:
    """Return a trainer over a base that offers only these of its modules."""
    base = base_of(LLAMA, torch.float32)
    return Trainer(base, {path: each for path, each in find_modules(base.model).items() if each.leaf in leaves}, 16)


def of_before(saved: bytes) -> bytes:
    """Return the saved state as older engines wrote it, without module shapes."""
    told = metadata(saved)
    return save(load(saved), {"mint.policy": told["mint.policy"]})


def metadata(saved: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(saved[8 : 8 + int.from_bytes(saved[:8], "little")])["__metadata__"]
    return found


@pytest.mark.parametrize("written", [bytes, of_before], ids=["now", "before"])
def test_a_policy_goes_on_with_the_same_numbers_whatever_else_is_offered(written: Any) -> None:
    kept, wider = trainer_over(*NARROW), trainer_over("q_proj", "k_proj", "v_proj", "down_proj")
    create(kept, "p", PolicySettings(rank=4, seed=1))
    awaken(kept, "p")
    restore(wider, "p", written(saved_of(kept, "p")))
    for trainer in (kept, wider):
        learn(trainer, [PolicyBatch("p", groups(1))])
        step_all(trainer, {"p": OPTIMIZER})
    left, right = (load(saved_of(trainer, "p")) for trainer in (kept, wider))
    assert all(left[name].equal(right[name]) for name in left)


def test_a_checkpoint_of_older_engines_over_other_modules_is_accepted_with_a_warning() -> None:
    """The file has no shapes, so it cannot rule out that two of its modules had each other's shapes."""
    kept = trainer_over(*NARROW)
    create(kept, "p", PolicySettings(rank=4))
    for leaves, warned in ((NARROW, []), (WIDE, ["policy_without_shapes"])):
        with capture_logs() as log:
            restore(trainer_over(*leaves), "p", of_before(saved_of(kept, "p")))
        assert [line["event"] for line in log if line["log_level"] == "warning"] == warned


def test_engines_of_before_read_what_is_written_now() -> None:
    """Older engines refuse unknown fields, and any fingerprint but that of all the modules they offer."""
    kept, wider = trainer_over(*NARROW), trainer_over(*WIDE)
    create(kept, "p", PolicySettings(rank=4))
    restore(wider, "p", saved_of(kept, "p"))
    told = json.loads(metadata(saved_of(wider, "p"))["mint.policy"])
    assert told["base"] == fingerprint(wider.maker._modules)
    assert told.keys() == {
        "version", "base", "config", "ranks", "scalings", "step", "sequence", "normaliser", "sums", "broken",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "says"),
    [
        (
            bytes,
            r"trained on model\.layers\.0\.self_attn\.q_proj of 64 to 128 features where .* has 64 to 96 features",
        ),
        (of_before, "trained on modules of other shapes than the base model has"),
    ],
    ids=["now", "before"],
)
def test_a_policy_of_modules_of_other_shapes_is_refused(written: Any, says: str) -> None:
    trainer = trainer_over(*NARROW)
    create(trainer, "p", PolicySettings(rank=4))
    modules = {
        path: replace(each, out_features=96) if each.leaf == "q_proj" else each
        for path, each in trainer.maker._modules.items()
    }
    with pytest.raises(WrongBase, match=says):
        state.from_bytes(written(saved_of(trainer, "p")), "p", modules, CPU, "policy p")


def test_a_policy_of_modules_in_another_order_is_refused() -> None:
    trainer = trainer_over(*NARROW)
    create(trainer, "p", PolicySettings(rank=4))
    modules = dict(reversed(trainer.maker._modules.items()))
    with pytest.raises(WrongBase, match="in another order"):
        state.from_bytes(saved_of(trainer, "p"), "p", modules, CPU, "policy p")

"""What an engine tells of its room for policies is what it then counts: the operator need not know any base."""

from pathlib import Path

import msgspec
import pytest

from mint_contracts import training_pb2 as pb
from mint_contracts.training import Policy
from mint_engine.training.making import Maker
from mint_engine.training.policy import PolicySettings
from mint_operator.training.memory import Taken, needs
from tests.engine import saved_families
from tests.engine.running import save_base
from tests.engine.training.calling import called
from tests.engine.training.teaching import assignment, training


def counted(maker: Maker, rank: int, targets: tuple[str, ...]) -> Taken:
    found = maker.needs("one", PolicySettings(rank, target_modules=targets))
    return Taken(found.own, found.copies)


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("llama", [(), ("q_proj",), ("up_proj", "self_attn.v_proj")]),
        ("qwen3_moe", [(), ("up_proj",), ("q_proj", "down_proj")]),
        ("deepseek_v3", [(), ("up_proj",), ("shared_experts.up_proj",)]),
    ],
)
async def test_each_kind_of_policy_needs_what_its_engine_counts(
    family: str, kinds: list[tuple[str, ...]], tmp_path: Path
) -> None:
    base = save_base(tmp_path) if family == "llama" else saved_families.save_base(family, tmp_path)
    async with training(base, tmp_path / "runs") as scene:
        maker = scene.means.desk.maker
        room = msgspec.structs.replace(maker.room, budget=1 << 30)
        for rank in (1, 4):
            for targets in kinds:
                told = needs(Policy(name="one", rank=rank, target_modules=list(targets)), room)
                assert told == counted(maker, rank, targets)
                assert told.own


async def test_an_engine_tells_its_budget_and_what_policies_of_calls_take_of_it(tmp_path: Path) -> None:
    async with called(save_base(tmp_path), tmp_path / "runs") as (scene, stub):
        register, lending = scene.server.register, scene.residency.lending
        assert register.room is not None
        assert (register.room.budget, register.room.calls, register.room.calls_copies) == (64 << 20, 0, 0)
        for name, rank in (("one", 4), ("two", 8)):
            await stub.CreatePolicy(pb.CreatePolicyRequest(policy=name, rank=rank))
        large, small = (needs(Policy(name="x", rank=rank), register.room) for rank in (8, 4))
        assert (register.room.calls, register.room.calls_copies) == (large.own + small.own, large.copies)
        assert lending.room.lasting == large.plus(small).total
        scene.want(assignment("three"))
        await scene.ended("three")
        await stub.DropPolicy(pb.DropPolicyRequest(policy="two"))
        assert (register.room.calls, register.room.calls_copies) == (small.own, small.copies)

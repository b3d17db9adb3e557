"""An engine's reported room for policies equals what it later counts, so the operator needs to know no base."""

from pathlib import Path

import msgspec
import pytest
import torch

from mint_contracts import training_pb2 as pb
from mint_contracts.training import Policy
from mint_engine.model.modules import find_modules
from mint_engine.parallel.shard import share_of
from mint_engine.parallel.shares import Share, cuts_of
from mint_engine.training.batch import Held
from mint_engine.training.making import Maker
from mint_engine.training.policy import FormLimits, PolicySettings
from mint_engine.training.sharing import Sharing
from mint_operator.planning.sizes import Size
from mint_operator.training.memory import Starts, Taken, needs
from tests.engine import saved_families
from tests.engine.running import save_base
from tests.engine.training.calling import called
from tests.engine.training.frontier_families import base_of
from tests.engine.training.training_engine import training


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
        maker = scene.context.step_thread.maker
        room = msgspec.structs.replace(maker.room, budget=1 << 30)
        for rank in (1, 4):
            for targets in kinds:
                told = needs(Policy(name="one", rank=rank, target_modules=list(targets)), room)
                assert told == counted(maker, rank, targets)
                assert told.own


class Rank:
    """A `Group` for code that only asks which share one rank holds."""

    def __init__(self, share: Share) -> None:
        self.share = share

    def sum(self, partial: torch.Tensor) -> torch.Tensor:
        return partial

    def gather(self, own: torch.Tensor) -> torch.Tensor:
        return own


def held_bytes(held: Held) -> int:
    return held.gradient.nbytes + sum(part.a.nbytes + part.b.nbytes for part in held.parts.values())


@pytest.mark.parametrize(("ranks", "here"), [(2, 2), (4, 2)], ids=["one node", "two nodes"])
@pytest.mark.parametrize(("family", "targets"), [("llama", ()), ("qwen3_moe", ("up_proj", "o_proj"))])
def test_what_ranks_hold_of_a_policy_in_an_update_counts(
    family: str, targets: tuple[str, ...], ranks: int, here: int
) -> None:
    """The ranks on the first rank's node count, as they use its memory; the operator computes the same."""
    base = base_of(family, torch.bfloat16)
    modules, limits = find_modules(base.model), FormLimits(16)
    groups = [Rank(share_of(base.model, rank, ranks)) for rank in range(here)]
    cuts = [cuts_of(modules, group.share) for group in groups]
    maker, alone = (Maker(modules, limits, base.dtype, base.device, each) for each in (cuts, []))
    policy = maker.fresh("one", PolicySettings(4, target_modules=targets))
    form, run = policy.form, policy.round(base.dtype)
    found = [
        Sharing(modules, each, base.dtype, base.device).take(0, form.layout, form.scalings, run) for each in groups
    ]
    needs_of_all = maker.needs_for(policy)
    assert needs_of_all.own == alone.needs_for(policy).own + sum(map(held_bytes, found))
    assert needs_of_all.copies == alone.needs_for(policy).copies
    room = msgspec.structs.replace(maker.room, budget=1 << 30)
    told = needs(Policy(name="one", rank=4, target_modules=list(targets)), room)
    assert told == counted(maker, 4, targets) == Taken(needs_of_all.own, needs_of_all.copies)
    started = Starts({"from": Size(4, form.layout.elements * 2)})
    bound = needs(Policy(name="one", start_from="from"), room, started)
    assert told.own <= bound.own <= alone.needs_for(policy).own + here * 6 * form.layout.elements


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
        await scene.complete("three")
        await stub.DropPolicy(pb.DropPolicyRequest(policy="two"))
        assert (register.room.calls, register.room.calls_copies) == (small.own, small.copies)

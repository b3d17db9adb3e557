"""All ranks of an engine compute with passes of one kind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.base import load_base
from mint_engine.model.quantised_experts import QuantisedWeight
from mint_engine.model.reference import load_part
from mint_engine.parallel.member import Member
from mint_engine.parallel.messages import Passes
from mint_engine.parallel.part import Part
from mint_engine.parallel.passes import check_alike, least_room
from mint_engine.parallel.peers import Peers
from mint_engine.parallel.ranks import Ranks
from tests.engine.families import CPU
from tests.engine.integers import PACKED, save_packed
from tests.engine.parallel.learning import engine
from tests.engine.parallel.playing import built
from tests.engine.quantised import edit_tensors, tensors_of
from tests.engine.running import save_base
from tests.engine.saved_families import save_base as save_family


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of quantised experts; one expert of the first rank has another scale type in its gate and up linears."""
    folder = tmp_path_factory.mktemp("mixed")
    quantised, _ = save_packed(save_family("qwen3_moe", folder / "plain"), folder, PACKED["kimi"])
    there = tensors_of(quantised)
    names = [name for name in there if ".experts.0." in name and name.endswith("weight_scale")]
    edit_tensors(quantised, {name: there[name].float() for name in names if "down_proj" not in name})
    return quantised


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stack_is_held_plain_by_every_rank_or_by_none(rank: int, mixed: Path) -> None:
    """Whichever rank has the expert that differs, and however the rank reads its layers."""
    read = load_base(mixed, torch.bfloat16, CPU, Part(rank, 2), quantised_experts=True)
    streamed, _ = load_part(mixed, torch.bfloat16, Part(rank, 2), quantised_experts=True)
    for base in (read, streamed):
        held: list[Any] = [module for module in base.model.modules() if hasattr(module, "gate_up_proj")]
        assert held
        for experts in held:
            assert not isinstance(experts.gate_up_proj, QuantisedWeight)
            assert isinstance(experts.down_proj, QuantisedWeight)


def test_ranks_of_which_one_holds_what_differs_learn_as_one_does(mixed: Path) -> None:
    gradients = []
    for ranks in (1, 2):
        with engine(mixed, ranks, "bfloat16", quantised_experts=True) as each:
            gradients.append(torch.cat(each.gradients(replayed=True)))
    whole, shared = gradients
    assert float((shared - whole).norm() / whole.norm()) < 0.15


def test_a_rank_that_serves_by_another_kind_of_pass_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal comes before any rank waits for another."""
    meet = Ranks.meet

    def meet_by_modules(self: Ranks, member: Member, *, lean: bool) -> Peers:
        return meet(self, member, lean=False)

    monkeypatch.setattr(Ranks, "meet", meet_by_modules)
    refused = r"tensorParallelSize: is more than 1, and rank 1 serves by generic, rank 0 by lean \("
    with pytest.raises(UnsupportedBase, match=refused), built(save_base(tmp_path), 2):
        pass


def test_passes_of_one_kind_may_be_of_several_variants() -> None:
    check_alike("trains", "lean (amx_bf16)", {1: "lean (avx512_bf16)", 2: "lean (avx2)"})
    with pytest.raises(UnsupportedBase, match=r"rank 2 trains by generic, rank 0 by lean \(avx2\); give the engine"):
        check_alike("trains", "lean (avx2)", {2: "generic", 1: "lean (avx2)"})


def test_the_fullest_gpu_has_room_for_all_ranks() -> None:
    assert least_room([Passes(1, "generic", "", 7), Passes(2, "generic", "", 5)]) == 5
    assert least_room([Passes(1, "generic", "")]) is None

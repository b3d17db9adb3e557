"""What training adds to a plan: the policies' memory, exact to the byte, on the rank that holds them."""

import msgspec
import pytest
import torch

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.modules import find_modules
from mint_engine.parallel.shard import share_of
from mint_engine.parallel.shares import cuts_of
from mint_engine.residency.host import HostTier
from mint_engine.residency.policy_device import RESERVE
from mint_engine.residency.policy_memory import PolicyMemory
from mint_engine.training import generic_pass, lean_pass, pieces
from mint_engine.training.example import PolicyBatch
from mint_engine.training.kernels import allocate_mask
from mint_engine.training.llama import read_llama
from mint_engine.training.making import Maker
from mint_engine.training.pieces import Tree
from mint_engine.training.policy import FormLimits, PolicySettings
from mint_engine.training.trainer import Trainer
from mint_gateway.planning import fit
from mint_gateway.planning.config import read_shape
from mint_gateway.planning.devices import DEVICES
from mint_gateway.planning.fit import Mix, Plan, Storage, make_plan
from mint_gateway.planning.limits import MOST_SLOTS
from mint_gateway.planning.shape import Targets
from tests.engine.families import FAMILIES
from tests.engine.training.at_once import create
from tests.engine.training.frontier_families import base_of, examples_of
from tests.engine.training.scene import learn
from tests.planning.frontier import FRONTIER
from tests.planning.models import config_fields

MIX = Mix(adapters=4, rank=8, targets="attention", requests=4, context=1024)


def plan(name: str, ranks: int, **changes: object) -> Plan:
    mix = msgspec.structs.replace(MIX, **changes)
    return make_plan(read_shape(FRONTIER[name]), DEVICES["h200"], ranks, mix, "bfloat16", Storage(1e9, 1e9))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("family", "targets"), [("llama", "all"), ("qwen3_moe", "all"), ("deepseek_v32", "all"), ("glm_5", "dense")]
)
def test_a_policy_takes_the_engines_bytes(family: str, targets: Targets, dtype: str) -> None:
    """Compares after a backward pass, when a policy has all its tensors; an indexer is never trained."""
    base, shape = base_of(family, getattr(torch, dtype)), read_shape(config_fields(FAMILIES[family]))
    named = shape.target_modules(targets)
    trainer = Trainer(base, find_modules(base.model, named), 16, "", named, lean=False)
    create(trainer, "p", PolicySettings(rank=4))
    learn(trainer, [PolicyBatch("p", examples_of(0))])
    policy = trainer.policy("p")
    vectors = (policy.weights, policy.gradient, policy.exp_avg, policy.exp_avg_sq, policy.round(base.dtype))
    mix = msgspec.structs.replace(MIX, targets=targets, context=16, policies=3, policy_rank=4)
    found = make_plan(shape, DEVICES["cpu"], 1, mix, dtype, Storage(1e9, 1e9))
    assert found.policy == sum(each.nbytes for each in vectors if each is not None)
    needs = trainer.maker.needs_for(policy)
    assert (found.policy, found.policy_saved) == (needs.own, needs.copies)
    room = PolicyMemory(HostTier(found.held[0].training), lambda _: None)
    for name in ("p", "q", "r"):
        room.take(name, needs)
    assert room.lasting == found.held[0].training, "and so much hostMemory lets all of them train"


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("family", "targets"), [("llama", "all"), ("qwen3_moe", "all"), ("glm_5", "dense")])
def test_ranks_hold_the_engines_bytes_for_policies_in_updates(family: str, targets: Targets, ranks: int) -> None:
    """As the engine counts it against hostMemory if all policies are in one update."""
    base, shape = base_of(family, torch.bfloat16), read_shape(config_fields(FAMILIES[family]))
    modules = find_modules(base.model, shape.target_modules(targets))
    cuts = [cuts_of(modules, share_of(base.model, rank, ranks)) for rank in range(ranks)] if ranks > 1 else []
    maker = Maker(modules, FormLimits(16), base.dtype, base.device, cuts)
    needs, room = maker.needs("p", PolicySettings(rank=4)), PolicyMemory(HostTier(1 << 30), lambda _: None)
    for name in ("p", "q", "r"):
        room.take(name, needs)
    mix = msgspec.structs.replace(MIX, targets=targets, context=16, policies=3, policy_rank=4)
    found = make_plan(shape, DEVICES["cpu"], ranks, mix, "bfloat16", Storage(1e9, 1e9))
    assert found.policy + found.policy_parts == needs.own
    assert found.held[0].training == room.lasting
    assert bool(found.policy_parts) == (ranks > 1)


def test_what_policies_take_of_a_gpu() -> None:
    """As an engine there counts it: beside the reserve, and what transformers' modules keep for the way back."""
    base, shape = base_of("llama", torch.bfloat16), read_shape(config_fields(FAMILIES["llama"]))
    maker = Maker(find_modules(base.model), FormLimits(16), base.dtype, torch.device("cuda"))
    mix = msgspec.structs.replace(MIX, targets="all", context=16, policies=3, policy_rank=4)
    found = make_plan(shape, DEVICES["h200"], 1, mix, "bfloat16", Storage(1e9, 1e9)).held[0]
    assert found.training == 3 * maker.needs("p", PolicySettings(rank=4)).device
    assert found.activations == pieces.PIECE_ROWS * generic_pass.kept_bytes(base.config, base.dtype)
    assert fit.RESERVE == RESERVE


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "family",
    [
        *("llama", "qwen3", "phi3", "qwen3_moe", "glm4_moe", "deepseek_v3", "deepseek_v3_plain_query"),
        *("deepseek_v32", "glm_5", "gemma2", "gemma3", "gpt_oss", "olmo2", "exaone4", "minimax_m2"),
    ],
)
def test_activations_of_own_kernels_are_counted(family: str, dtype: str) -> None:
    """For as many rows as own kernels compute at once."""
    base, shape = base_of(family, getattr(torch, dtype)), read_shape(config_fields(FAMILIES[family]))
    read = read_llama(base, find_modules(base.model))
    assert shape.kept_elements(lean=True) * base.dtype.itemsize == lean_pass.kept_bytes(read)
    assert (fit.PIECE_ROWS, fit.MOST_ROWS, fit.KEPT_BYTES) == (
        pieces.PIECE_ROWS,
        lean_pass.MOST_ROWS,
        lean_pass.KEPT_BYTES,
    )
    mix = msgspec.structs.replace(MIX, context=16, policies=3, policy_rank=4)
    found = make_plan(shape, DEVICES["cpu"], 1, mix, dtype, Storage(1e9, 1e9)).held[0]
    assert found.activations == lean_pass.MOST_ROWS * (lean_pass.kept_bytes(read) + shape.choice_bytes(16))
    alone = make_plan(shape, DEVICES["cpu"], 1, msgspec.structs.replace(mix, policies=0), dtype, Storage(1e9, 1e9))
    assert alone.held[0].activations == 0


@pytest.mark.parametrize("family", ["deepseek_v32", "glm_5"])
def test_choices_of_an_indexer_are_counted_with_the_activations(family: str) -> None:
    """For each layer with its own indexer; nothing if the indexer may choose all tokens."""
    base, shape = base_of(family, torch.bfloat16), read_shape(config_fields(FAMILIES[family]))
    read, tokens = read_llama(base, find_modules(base.model)), 1 << 12
    assert shape.choice_bytes(shape.indexer_top_k) == 0
    choosing = [layer.latent.indexer for layer in read.layers if layer.latent and layer.latent.indexer]
    choices = [allocate_mask([Tree(0, tokens, ())], each.top_k) for each in choosing]
    kept = sum(choice.bits.nbytes for choice in choices if choice is not None)
    assert kept == pytest.approx(tokens * shape.choice_bytes(tokens), rel=0.05)
    mix = msgspec.structs.replace(MIX, context=tokens, policies=1, policy_rank=4)
    found = make_plan(shape, DEVICES["cpu"], 1, mix, "bfloat16", Storage(1e9, 1e9)).held[0]
    each = shape.kept_elements(lean=True) * 2 + shape.choice_bytes(tokens)
    assert found.activations == tokens * each, "an example of so many is computed at once"


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen3_moe", "deepseek_v32", "glm_5"])
def test_an_update_keeps_all_of_a_long_example_on_a_gpu(family: str) -> None:
    """As an engine reserves it there, one layer and choices of indexers included."""
    base, shape = base_of(family, torch.bfloat16), read_shape(config_fields(FAMILIES[family]))
    mix = msgspec.structs.replace(MIX, context=1 << 12, policies=1, policy_rank=4)
    found = make_plan(shape, DEVICES["h200"], 1, mix, "bfloat16", Storage(1e9, 1e9)).held[0]
    assert found.activations == generic_pass.kept_of(base)(1 << 12)
    assert (fit.HIDDENS, fit.OUTPUTS) == (generic_pass.HIDDENS, generic_pass.OUTPUTS)


def test_activations_take_the_room_of_slots() -> None:
    """A large base computes one piece of a policy at a time; on GPUs every rank keeps each layer's input."""
    shape, cpu = read_shape(FRONTIER["qwen3_30b_a3b"]), msgspec.structs.replace(DEVICES["cpu"], memory=1 << 40)
    mix = msgspec.structs.replace(MIX, policies=2, policy_rank=1)
    found = make_plan(shape, cpu, 1, mix, "bfloat16", Storage(1e9, 1e9)).held[0]
    assert found.activations == 1024 * 2 * shape.kept_elements(lean=True) > 3 << 29
    taken = found.weights + found.cache + found.training + found.activations + 2 * found.adapter
    assert found.room == fit.usable(cpu) - taken
    ranks = plan("qwen3_30b_a3b", 2, policies=2, policy_rank=1).held
    assert {each.activations for each in ranks} == {1024 * 2 * 48 * 2048}


def test_the_first_rank_has_all_of_every_policy() -> None:
    """Policies' state is not split over ranks; a slot of their rank is on every rank, as is memory for an update:

    a gradient in float32 of the slot's weights.
    """
    served, trained = plan("kimi_k2", 24), plan("kimi_k2", 24, policies=8, policy_rank=16)
    parts = [3 * each.adapter for each in trained.held]
    assert trained.policy_parts == sum(parts)
    first, *others = (each.training - 8 * part for each, part in zip(trained.held, parts, strict=True))
    assert first == 8 * trained.policy
    assert {*others} == {0}
    for each, other in zip(trained.held, served.held, strict=True):
        assert each.adapter == 2 * other.adapter
        routes = each.cache - other.cache
        assert each.room == other.room - routes - each.training - each.activations - 8 * each.adapter
    assert trained.from_host == served.from_host, "the adapters are what they were"


def test_the_first_rank_keeps_which_experts_tokens_went_to_where_policies_train() -> None:
    """Kimi-K2 has eight experts a token in each of sixty layers, two bytes each."""
    served, trained = plan("kimi_k2", 24), plan("kimi_k2", 24, policies=1, policy_rank=1)
    assert trained.token == served.token + 60 * 8 * 2
    first, *others = (each.cache for each in trained.held)
    assert first == trained.cache == served.cache + 4 * 1024 * 60 * 8 * 2
    assert {*others} == {served.cache}


def test_an_engine_that_trains_has_fewer_slots_for_others() -> None:
    found = plan("qwen3_30b_a3b", 1, adapters=4000, rank=1, policies=24, policy_rank=1)
    assert found.slots == MOST_SLOTS - 24
    assert plan("qwen3_30b_a3b", 1, policies=MOST_SLOTS).slots == 0
    assert "1024 slots, of which each policy takes one" in plan("phi_3_mini", 1, policies=MOST_SLOTS).refusal
    assert "at most 512" in plan("phi_3_mini", 1, policies=1, policy_rank=513).refusal


def test_more_ranks_do_not_add_room_for_policies_on_the_first_rank() -> None:
    """Of what the first rank holds only its share of the weights becomes smaller."""
    many: dict[str, object] = {"targets": "all", "policies": 64, "policy_rank": 8}
    found = plan("qwen3_30b_a3b", 8, **many)
    assert not found.fits
    assert found.least is None
    assert found.held[0].least > found.memory // 8 > found.held[1].least
    assert plan("qwen3_30b_a3b", 8, **(many | {"policies": 4})).fits
    with pytest.raises(UnsupportedBase):
        plan("qwen3_30b_a3b", 48)

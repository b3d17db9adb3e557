"""The life of a policy in a trainer: its start, its revisions, its saved files, and what is refused."""

import json
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save

from mint_contracts.errors import (
    CorruptFile,
    InvalidRequest,
    MintError,
    NotFound,
    RankTooLarge,
    UnknownTargetModules,
    WrongBase,
)
from mint_contracts.training import Loss, LossType, Optimizer
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit, check_numbers, check_packed
from mint_engine.adapters.packed import halves, is_finite
from mint_engine.adapters.peft_config import parse
from mint_engine.model.modules import find_modules
from mint_engine.policies.courses.handoff import hand_off
from mint_engine.residency.slots import Slots
from mint_engine.training import state
from mint_engine.training.example import Example, PolicyBatch, completion
from mint_engine.training.pieces import plan_pieces
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.training.at_once import create, packed_of, restore, saved_of, step_all
from tests.engine.training.scene import (
    CPU,
    LLAMA,
    OPTIMIZER,
    groups,
    learn,
    model_of,
    policies,
    trainer_of,
    trainer_with,
)


def test_a_new_policy_starts_as_peft_starts_it() -> None:
    """B is zero; A is uniform with the bounds and spread of PEFT's kaiming_uniform_."""
    trainer = trainer_of()
    create(trainer, "p", PolicySettings(rank=16, seed=3))
    model = get_peft_model(model_of(LLAMA, torch.float32), LoraConfig(r=16, target_modules="all-linear"))
    policy = trainer.policy("p")
    for place, a, b in halves(policy.form.layout, policy.weights):
        theirs = model.get_submodule(f"base_model.model.{place.path}").lora_A["default"].weight  # type: ignore[index,union-attr]
        bound = place.in_features**-0.5
        assert a.abs().max() <= bound
        assert theirs.abs().max() <= bound
        assert float(a.std()) == pytest.approx(float(theirs.detach().std()), rel=0.1)
        assert not b.any()


def test_seeds_tell_policies_apart() -> None:
    trainer = trainer_of()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        create(trainer, name, PolicySettings(seed=seed))
    assert torch.equal(trainer.policy("a").weights, trainer.policy("b").weights)
    assert not torch.equal(trainer.policy("a").weights, trainer.policy("c").weights)


def test_the_host_memory_that_a_policy_takes_is_known_before_it_is_made() -> None:
    trainer, settings = trainer_of(), PolicySettings(rank=8)
    needs = trainer.maker.needs("a", settings)
    assert trainer.host_bytes == 0
    create(trainer, "a", settings)
    learn(trainer, [PolicyBatch("a", groups(1))])
    policy, blob = trainer.policy("a"), len(saved_of(trainer, "a"))
    vector = policy.weights.nbytes
    assert trainer.host_bytes == needs.own == 5 * vector, "weights, what they round to, gradient and moments"
    assert needs.copies == 2 * 4 * vector, "a copy, and the bytes that are made of it"
    assert abs(blob - 4 * vector) < 16384, "which are four vectors, and what is told of them"
    assert trainer.maker.needs_for(policy) == needs
    trainer.drop("a")
    assert trainer.host_bytes == 0


def apart(saved: bytes) -> tuple[int, dict[str, object], list[str], bytes]:
    """Split a safetensors file into its header's length, content and key order, and the data that follows."""
    start = 8 + int.from_bytes(saved[:8], "little")
    header = json.loads(saved[8:start])
    return start, header, list(header), saved[start:]


def test_a_saved_policy_is_byte_for_byte_what_safetensors_itself_writes() -> None:
    trainer = trainer_of()
    create(trainer, "p", PolicySettings(rank=8))
    for names in (["exp_avg", "exp_avg_sq", "weights"], ["exp_avg", "exp_avg_sq", "gradient", "weights"]):
        found, policy = saved_of(trainer, "p"), trainer.policy("p")
        metadata = json.loads(found[8 : apart(found)[0]])["__metadata__"]
        written = save({name: getattr(policy, name) for name in names}, metadata)
        assert apart(found) == apart(written)
        learn(trainer, [PolicyBatch("p", groups(1))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_revision_is_an_adapter_like_any_other(dtype: torch.dtype) -> None:
    """It passes the checks of packed adapters, is copied into a slot as it is, and is named by its content."""
    trainer = trainer_of(dtype=dtype)
    create(trainer, "p", PolicySettings(rank=4, alpha=12.0, target_modules=("q_proj", "down_proj"), seed=1))
    modules = find_modules(model_of(LLAMA, dtype))
    slots = Slots(modules, 2, 16, dtype, CPU)
    packed = packed_of(trainer, "p")
    config = parse(packed.header.config, "p")
    check_packed(packed.header, Fit(modules, 16), "p")
    check_numbers(packed.header, config, Fit(modules, 16), "p")
    assert config.canonical == packed.header.config
    assert json.loads(packed.header.config)["target_modules"] == ["down_proj", "q_proj"]
    assert is_finite(packed.run)
    slots.load(1, packed)
    assert torch.equal(slots.memory[1, : packed.run.numel()], trainer.policy("p").weights.to(dtype))
    again = packed_of(trainer, "p")
    assert again.revision == packed.revision
    assert again.header.layout is packed.header.layout
    learn(trainer, [PolicyBatch("p", groups(1))])
    step_all(trainer, {"p": OPTIMIZER})
    assert packed_of(trainer, "p").revision != packed.revision
    assert torch.equal(slots.memory[1, : packed.run.numel()], packed.run), "a published revision never changes"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_handed_off_is_what_would_be_published(dtype: torch.dtype) -> None:
    """Masters rounded into the slot equal the revision bit for bit; a larger previous tenant leaves no trace."""
    trainer = trainer_of(dtype=dtype)
    create(trainer, "large", PolicySettings(rank=8, seed=2))
    create(trainer, "p", PolicySettings(rank=3, target_modules=("q_proj", "down_proj"), seed=1))
    learn(trainer, [PolicyBatch("p", groups(1))])
    step_all(trainer, {"p": OPTIMIZER})
    slots = Slots(find_modules(model_of(LLAMA, dtype)), 2, 16, dtype, CPU)
    slots.load(0, packed_of(trainer, "large"))
    hand_off(slots, 0, trainer.policy("p"), "p@1.1")
    slots.load(1, packed_of(trainer, "p"))
    assert torch.equal(slots.memory[0], slots.memory[1])
    assert torch.equal(slots.places[:, 0], slots.places[:, 1])
    assert torch.equal(slots.ranks[:, 0], slots.ranks[:, 1])
    assert torch.equal(slots.scalings[:, 0], slots.scalings[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_as_a_step_writes_them(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step works stretch by stretch, and its bits equal those of torch's AdamW over all weights."""
    monkeypatch.setattr("mint_engine.training.optimizer._STRETCH", 1 << 10)
    trainer = trainer_of(dtype=dtype)
    create(trainer, "p", PolicySettings(rank=16, seed=1))
    policy, wanted = trainer.policy("p"), Optimizer(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.0)
    expected = policy.weights.clone().requires_grad_()
    torchs = torch.optim.AdamW([expected], 1e-2, (wanted.beta1, wanted.beta2), wanted.epsilon, 0.1, foreach=False)
    draw = torch.Generator().manual_seed(0)
    for step in range(3):
        gradient = torch.randn(policy.weights.numel(), generator=draw)
        expected.grad, policy.gradient, policy.normaliser = gradient.clone(), gradient, 1.0
        torchs.step()
        step_all(trainer, {"p": wanted})
        assert torch.equal(policy.weights, expected.detach())
        assert policy.rounded is not None
        assert torch.equal(policy.rounded, policy.weights.to(dtype)), step


def test_a_handoff_leaves_weights_to_work_in_progress() -> None:
    trainer = trainer_of()
    create(trainer, "p", PolicySettings(rank=4, seed=1))
    policy, slots = (
        trainer.policy("p"),
        Slots(find_modules(model_of(LLAMA, torch.float32)), 1, 16, torch.float32, CPU),
    )
    work = trainer.begin([PolicyBatch("p", groups(1))])
    while policy.rounded is None:
        work.advance()
    held = policy.rounded
    hand_off(slots, 0, policy, "p@1.0")
    assert held is policy.rounded
    work.cancel()
    hand_off(slots, 0, policy, "p@1.0")
    assert policy.rounded is None


def test_modules_that_a_policy_does_not_adapt_stay_untouched() -> None:
    """Updates change only the slot's tenant: memory beyond it and the other slots stay zero."""
    trainer = trainer_of()
    create(trainer, "p", PolicySettings(rank=2, target_modules=("v_proj",)))
    slots = Slots(find_modules(model_of(LLAMA, torch.float32)), 3, 16, torch.float32, CPU)
    for turn in range(3):
        slots.load(1, packed_of(trainer, "p"))
        learn(trainer, [PolicyBatch("p", groups(turn))])
        step_all(trainer, {"p": OPTIMIZER})
    slots.load(1, packed_of(trainer, "p"))
    held = trainer.policy("p").weights.numel()
    assert slots.memory[1, :held].any()
    assert not slots.memory[1, held:].any()
    assert not slots.memory[[0, 2]].any()


def test_a_name_used_again_starts_from_zero() -> None:
    """A new policy inherits nothing of a dropped one of its name: no weights, moments, gradient or step count."""
    trainer, other = trainer_of(), trainer_of()
    policies(trainer, 1)
    learn(trainer, [PolicyBatch("p/0", groups(1))])
    step_all(trainer, {"p/0": OPTIMIZER})
    learn(trainer, [PolicyBatch("p/0", groups(2))])
    trainer.drop("p/0")
    for each in (trainer, other):
        create(each, "p/0", PolicySettings(rank=8, seed=5))
        learn(each, [PolicyBatch("p/0", groups(3))])
        step_all(each, {"p/0": OPTIMIZER})
    assert saved_of(trainer, "p/0") == saved_of(other, "p/0")


@pytest.mark.parametrize("between_steps", [True, False])
def test_a_policy_read_back_goes_on_with_the_same_numbers(between_steps: bool) -> None:
    """It is saved after a step or with an accumulated gradient, and restored on another engine of the base."""
    whole, before, after = trainer_with(1), trainer_with(1), trainer_of()
    for trainer in (whole, before):
        learn(trainer, [PolicyBatch("p/0", groups(1))])
        if between_steps:
            step_all(trainer, {"p/0": OPTIMIZER})
    restore(after, "p/0", saved_of(before, "p/0"))
    for trainer in (whole, after):
        learn(trainer, [PolicyBatch("p/0", groups(2))])
        step_all(trainer, {"p/0": OPTIMIZER})
    assert saved_of(after, "p/0") == saved_of(whole, "p/0")


def test_a_file_keeps_the_number_of_a_call_that_older_engines_write_and_require() -> None:
    trainer = trainer_with(1)
    data = bytes(saved_of(trainer, "p/0"))
    older = data.replace(rb"\"sequence\":0", rb"\"sequence\":7")
    assert older != data
    restore(trainer_of(), "p/0", older)


def test_a_policy_can_start_from_a_revision() -> None:
    trainer = trainer_of()
    create(trainer, "first", PolicySettings(rank=4, alpha=12.0))
    learn(trainer, [PolicyBatch("first", groups(1))])
    step_all(trainer, {"first": OPTIMIZER})
    create(trainer, "second", PolicySettings(), start=packed_of(trainer, "first"))
    assert torch.equal(trainer.policy("second").weights, trainer.policy("first").weights)
    assert trainer.policy("second").form.scalings[0] == 3.0
    assert packed_of(trainer, "second").revision == packed_of(trainer, "first").revision


def test_split_accumulation_equals_combined() -> None:
    """Three works of a few examples each, then a step, give the same update as one work of all, up to rounding."""
    for loss_type in ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "ppo", "importance_sampling", "cross_entropy"):
        loss = Loss(type=loss_type, kl_coefficient=0.1)
        examples = groups(5, prompts=4)
        one, many = trainer_with(1), trainer_with(1)
        for trainer, parts in ((one, [examples]), (many, [examples[:3], examples[3:8], examples[8:]])):
            for part in parts:
                learn(trainer, [PolicyBatch("p/0", part, loss, completion_tokens=20)])
            step_all(trainer, {"p/0": OPTIMIZER})
        torch.testing.assert_close(one.policy("p/0").exp_avg, many.policy("p/0").exp_avg, rtol=1e-3, atol=1e-7)


def test_only_where_a_sampler_is_read_is_it_told_how_far_that_is() -> None:
    """In supervised learning, the distance from log-probabilities of 0 would be mistaken for drift."""
    trainer = trainer_with(2)
    losses = Loss(type="cross_entropy", kl_coefficient=0.1), Loss(kl_coefficient=0.1)
    found = learn(trainer, [PolicyBatch(f"p/{at}", groups(at), loss) for at, loss in enumerate(losses)])
    assert found["p/0"].metrics.keys() == {"kl"}
    assert found["p/1"].metrics.keys() == {"kl", "ratio", "clipped", "kept", "drift"}


def test_pieces_change_nothing_but_rounding() -> None:
    """Completions that share a prompt give the same gradient whether computed together or one by one."""
    examples = groups(6, prompts=3, size=4)
    # Interleaved, no two neighbours have the same prompt, so nothing is shared.
    lonely = [examples[group * 4 + place] for place in range(4) for group in range(3)]
    shared, apart = trainer_with(1), trainer_with(1)
    outcomes = []
    for trainer, part in ((shared, examples), (apart, lonely)):
        outcomes.append(learn(trainer, [PolicyBatch("p/0", part)])["p/0"])
    assert outcomes[0].rows < outcomes[1].rows
    assert outcomes[0].tokens == outcomes[1].tokens
    torch.testing.assert_close(shared.policy("p/0").gradient, apart.policy("p/0").gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("most", [1, 20, 40, 1000])
def test_every_weighted_token_is_in_one_piece(most: int) -> None:
    batch = PolicyBatch("p", groups(7, prompts=3, size=4))
    pieces = list(plan_pieces(batch, most))
    found = [(e, at) for piece in pieces for e, at in zip(piece.entries.examples, piece.entries.places, strict=True)]
    assert sorted(found) == [
        (number, at) for number, each in enumerate(batch.examples) for at, weight in enumerate(each.weights) if weight
    ]
    for piece in pieces:
        assert piece.rows <= most or len(set(piece.entries.examples)) == 1
        for row, number, at in zip(piece.entries.rows, piece.entries.examples, piece.entries.places, strict=True):
            example = batch.examples[number]
            assert piece.tokens[row] == example.tokens[at]
            assert piece.positions[row] == at


def test_cancelled_work_leaves_no_trace() -> None:
    trainer = trainer_with(1)
    before = saved_of(trainer, "p/0")
    work = trainer.begin([PolicyBatch("p/0", groups(1))])
    work.advance()
    work.cancel()
    assert not work.advance()
    assert saved_of(trainer, "p/0") == before
    trainer.begin([PolicyBatch("p/0", groups(1))])  # the policy is free for other work


def over(**changes: object) -> Example:
    fields: dict[str, object] = {
        "tokens": [1, 2], "targets": [2, 3], "weights": [0, 1], "sampler_logprobs": [0, -1], "advantages": [0, 1],
    }  # fmt: skip
    return Example(**(fields | changes))  # type: ignore[arg-type]


REFUSED: list[tuple[type[MintError], str, Callable[[Trainer], object]]] = [
    (RankTooLarge, "policy q: has rank 17", lambda t: create(t, "q", PolicySettings(rank=17))),
    (RankTooLarge, "policy q: has rank 0", lambda t: create(t, "q", PolicySettings(rank=0))),
    (InvalidRequest, "policy q: has alpha nan", lambda t: create(t, "q", PolicySettings(alpha=float("nan")))),
    (UnknownTargetModules, "policy q: targets lm", lambda t: create(t, "q", PolicySettings(target_modules=("lm",)))),
    (InvalidRequest, "policy p/0: is already trained here", lambda t: create(t, "p/0", PolicySettings())),
    (InvalidRequest, "policy p/0: is already trained here", lambda t: restore(t, "p/0", saved_of(t, "p/0"))),
    (NotFound, "policy q: is not trained", lambda t: t.begin([PolicyBatch("q", [])])),
    (InvalidRequest, "policy p/0: has no finished gradient", lambda t: t.begin_step("p/0", OPTIMIZER)),
    (InvalidRequest, "has two batches", lambda t: t.begin([PolicyBatch("p/0", []), PolicyBatch("p/0", [])])),
    (InvalidRequest, "example 0: has 0 tokens", lambda t: t.begin([PolicyBatch("p/0", [over(tokens=[])])])),
    (InvalidRequest, "has 300 tokens", lambda t: t.begin([PolicyBatch("p/0", [over(tokens=[1] * 300)])])),
    (InvalidRequest, r"has -1 in tokens\[1\];", lambda t: t.begin([PolicyBatch("p/0", [over(tokens=[1, -1])])])),
    (
        InvalidRequest,
        r"has -100 in targets\[0\]; the base's tokens are 0 to 127; to leave a position out, give it .* weight 0",
        lambda t: t.begin([PolicyBatch("p/0", [over(targets=[-100, 128])])]),
    ),
    (InvalidRequest, "has 1 advantages for 2", lambda t: t.begin([PolicyBatch("p/0", [over(advantages=[1])])])),
    (InvalidRequest, "weight that is not", lambda t: t.begin([PolicyBatch("p/0", [over(weights=[0, torch.inf])])])),
    (InvalidRequest, "needs completion_tokens", lambda t: t.begin([PolicyBatch("p/0", [over()], Loss("dr_grpo"))])),
    (CorruptFile, "policy q: is not a saved policy", lambda t: restore(t, "q", b"nothing")),
    (CorruptFile, "policy q: ", lambda t: restore(t, "q", saved_of(t, "p/0")[:-4])),
]


@pytest.mark.parametrize(("error", "says", "act"), REFUSED)
def test_what_is_refused(error: type[MintError], says: str, act: Callable[[Trainer], object]) -> None:
    """The refusal is one clear error that names the policy, and nothing has changed."""
    trainer = trainer_with(1)
    before = saved_of(trainer, "p/0")
    with pytest.raises(error, match=says):
        act(trainer)
    assert trainer.names == {"p/0"}
    assert saved_of(trainer, "p/0") == before


def test_a_policy_in_unfinished_work_is_left_alone() -> None:
    trainer = trainer_with(1)
    work = trainer.begin([PolicyBatch("p/0", groups(1))])
    for act in (lambda: trainer.begin([PolicyBatch("p/0", groups(1))]), lambda: trainer.begin_step("p/0", OPTIMIZER)):
        with pytest.raises(InvalidRequest):
            act()
    while work.advance():
        pass
    with pytest.raises(InvalidRequest, match="has a gradient of dapo, which is divided differently; take a step"):
        trainer.begin([PolicyBatch("p/0", groups(1), Loss(type="grpo"))])


@pytest.mark.parametrize("types", [("cross_entropy", "ppo"), ("cispo", "dapo")])
def test_losses_that_are_divided_by_the_same_add_up_to_one_step(types: tuple[LossType, LossType]) -> None:
    """Such as answers to imitate beside completions with advantages; their gradients are those of each alone."""
    trainer = trainer_with(1)

    def learnt(*kinds: LossType) -> tuple[torch.Tensor, float]:
        for kind in kinds:
            work = trainer.begin([PolicyBatch("p/0", groups(1), Loss(type=kind))])
            while work.advance():
                pass
        policy = trainer.policy("p/0")
        assert policy.gradient is not None
        found = policy.gradient.clone(), policy.normaliser
        policy.forget_gradient()
        return found

    one, other, both = learnt(types[0]), learnt(types[1]), learnt(*types)
    torch.testing.assert_close(both[0], one[0] + other[0])
    assert both[1] == one[1] + other[1]


def test_a_policy_of_another_base_is_refused() -> None:
    trainer = trainer_with(1)
    with pytest.raises(WrongBase):
        state.from_bytes(saved_of(trainer, "p/0"), "p", {"x": Module("x", 4, 4)}, CPU, "policy p")


def test_a_completion_needs_a_prompt_and_logprobs() -> None:
    for prompt, tokens, logprobs in (([], [1], [0.0]), ([1], [], []), ([1], [1], [])):
        with pytest.raises(InvalidRequest):
            completion(prompt, tokens, logprobs, 1.0)

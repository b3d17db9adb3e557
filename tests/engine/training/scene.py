"""A tiny base, its policies and their training examples; and PEFT equivalents of the policies as references."""

import copy
import random
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from mint_contracts.training import Loss, Optimizer
from mint_engine.adapters.packed import halves
from mint_engine.model.base import Base
from mint_engine.model.modules import find_modules
from mint_engine.training.example import Example, PolicyBatch, completion
from mint_engine.training.policy import Policy, PolicySettings
from mint_engine.training.trainer import Trainer
from mint_engine.training.work import LossOutcome
from tests.engine.training.at_once import create

CPU = torch.device("cpu")
VOCABULARY = 128
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 256,
    "initializer_range": 0.2,
}  # fmt: skip
LLAMA = LlamaConfig(**SIZES)
RANKS = (8, 4, 16, 1)
DAPO = Loss(ratio_low=0.0, ratio_high=0.0)  # no ratio band, as in TRL's loss
# This epsilon is large enough that gradients of pure rounding noise do not decide a weight's direction.
OPTIMIZER = Optimizer(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=1.0, epsilon=1e-5)


def model_of(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Return a random model, the same on every call."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)  # type: ignore[no-untyped-call]
    model.train(False)
    model.requires_grad_(False)
    assert isinstance(model, PreTrainedModel)
    return model


def base_of(config: PreTrainedConfig, dtype: torch.dtype) -> Base:
    model = model_of(config, dtype)
    return Base(model, None, frozenset(), type(model).__name__, 256, config.vocab_size, dtype, CPU)  # type: ignore[arg-type]


def trainer_of(config: PreTrainedConfig = LLAMA, dtype: torch.dtype = torch.float32, **options: Any) -> Trainer:
    base = base_of(config, dtype)
    return Trainer(base, find_modules(base.model), max_rank=16, **options)


def awaken(trainer: Trainer, name: str, seed: int = 0) -> None:
    """Fill B with small random values, as after some steps: while B is zero, A has no gradient."""
    policy = trainer.policy(name)
    draw = torch.Generator().manual_seed(seed)
    for _, _, b in halves(policy.form.layout, policy.weights):
        b.normal_(0, 0.05, generator=draw)


def groups(seed: int, prompts: int = 2, size: int = 3, vocabulary: int = VOCABULARY) -> list[Example]:
    """Return random completions of random prompts, with plausible sampler log-probabilities and advantages."""
    draw = random.Random(seed)
    found = []
    for _ in range(prompts):
        prompt = [draw.randrange(vocabulary) for _ in range(draw.randint(1, 20))]
        for _ in range(size):
            tokens = [draw.randrange(vocabulary) for _ in range(draw.randint(1, 15))]
            logprobs = [draw.uniform(-6.0, -3.0) for _ in tokens]
            found.append(completion(prompt, tokens, logprobs, draw.uniform(-1.5, 1.5)))
    return found


def learn(trainer: Trainer, batches: Sequence[PolicyBatch]) -> dict[str, LossOutcome]:
    """Run a complete forward/backward over these batches and return its outcome per policy."""
    work = trainer.begin(batches)
    while work.advance():
        pass
    return work.results()


def policies(trainer: Trainer, count: int) -> list[str]:
    """Create `count` policies with nonzero B and varied ranks and targets; return their names.

    Each policy is named and seeded by its number.
    """
    names = [f"p/{number}" for number in range(count)]
    for number, name in enumerate(names):
        targets = few_of(trainer.policy(names[0])) if number % 3 == 2 else ()
        create(trainer, name, PolicySettings(RANKS[number % len(RANKS)], 16.0, targets, seed=number))
        awaken(trainer, name, seed=number)
    return names


def trainer_with(count: int, **options: Any) -> Trainer:
    """Return a trainer that has `count` such policies."""
    trainer = trainer_of(**options)
    policies(trainer, count)
    return trainer


def few_of(policy: Policy) -> tuple[str, ...]:
    """Return the query and value modules of a policy that targets everything; Phi-3 fuses them with the keys."""
    offered = {place.path.rpartition(".")[2] for place in policy.form.layout.places}
    return tuple(sorted(offered & {"q_proj", "v_proj", "qkv_proj"}))


def peft_of(trainer: Trainer, name: str, dtype: torch.dtype = torch.float32) -> PeftModel:
    """Return a PEFT model with the policy's current weights, which stay float32 as PEFT keeps them by default."""
    policy = trainer.policy(name)
    rank, scaling = policy.form.layout.rank, policy.form.scalings[0]
    targets = sorted({place.path.rpartition(".")[2] for place in policy.form.layout.places})
    options = LoraConfig(r=rank, lora_alpha=round(scaling * rank), target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(model_of(LLAMA, dtype), options)
    with torch.no_grad():
        for place, a, b in halves(policy.form.layout, policy.weights):
            module: Any = model.get_submodule(f"base_model.model.{place.path}")
            module.lora_A["default"].weight.copy_(a[0])
            module.lora_B["default"].weight.copy_(b[0].t())
    model.train(False)
    return model


def peft_vector(trainer: Trainer, name: str, model: PeftModel, *, gradient: bool) -> torch.Tensor:
    """Return the PEFT model's LoRA weights, or their gradients, in the policy's layout."""
    policy = trainer.policy(name)
    found = torch.zeros_like(policy.weights)
    for place, a, b in halves(policy.form.layout, found):
        module: Any = model.get_submodule(f"base_model.model.{place.path}")
        left, right = (module.lora_A["default"].weight, module.lora_B["default"].weight)
        a[0] = left.grad if gradient else left.detach()
        b[0] = (right.grad if gradient else right.detach()).t()
    return found


def peft_logprobs(model: PeftModel, example: Example, temperature: float) -> torch.Tensor:
    """Return the log-probabilities of an example's targets [T], by one forward pass.

    Logits are divided by the temperature, as in TRL.
    """
    logits: torch.Tensor = model(input_ids=torch.tensor([list(example.tokens)]), use_cache=False).logits[0].float()
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(list(example.targets))[:, None])[:, 0]


def dapo(model: PeftModel, examples: Sequence[Example], loss: Loss = DAPO, temperature: float = 1.0) -> torch.Tensor:
    """Compute TRL's default loss over completions, written out plainly, at either importance sampling level.

    At level "sequence", TRL's factor for the sampler is that of the sequence. The base is the model without adapter.
    """
    total, tokens = torch.zeros(()), 0.0
    for example in examples:
        sampler, weights = torch.tensor(example.sampler_logprobs), torch.tensor(example.weights)
        advantages = torch.tensor(example.advantages)
        logprobs, rest = peft_logprobs(model, example, temperature), torch.ones(())
        ratio = (logprobs - sampler).exp()
        if loss.by_sequence:
            old = torch.tensor(example.old_logprobs) if len(example.old_logprobs) else logprobs.detach()
            ratio, rest = (((each * weights).sum() / weights.sum()).exp() for each in (logprobs - old, old - sampler))
        bounded = ratio.clamp(loss.lowest, 1 + loss.clip_high)
        total = total - (torch.minimum(ratio * advantages, bounded * advantages) * rest * weights).sum()
        if loss.kl_coefficient:
            with model.disable_adapter(), torch.no_grad():
                base = peft_logprobs(model, example, temperature)
            total = total + loss.kl_coefficient * (((base - logprobs).exp() - (base - logprobs) - 1) * weights).sum()
        tokens += float(weights.sum())
    return total / tokens

"""Policies over tiny bases of every family, and a naive reference: autograd through adapter-merged weights."""

from collections.abc import Callable, Sequence

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from mint_contracts.training import Loss
from mint_engine.adapters.packed import halves
from mint_engine.model.base import Base
from mint_engine.model.modules import find_modules
from mint_engine.training.example import Example
from mint_engine.training.trainer import Trainer
from tests.engine.families import CPU, VOCABULARY, make_model
from tests.engine.saved_families import BASES
from tests.engine.training.scene import groups


def base_of(name: str, dtype: torch.dtype = torch.float32) -> Base:
    return base_over(make_model(BASES[name], dtype))


def base_over(model: PreTrainedModel) -> Base:
    model.requires_grad_(False)
    name = type(model).__name__
    return Base(model, None, frozenset(), name, 256, VOCABULARY, model.dtype, CPU)  # type: ignore[arg-type]


def trainer_of(name: str, dtype: torch.dtype = torch.float32, *, lean: bool = False) -> Trainer:
    base = base_of(name, dtype)
    return Trainer(base, find_modules(base.model), max_rank=16, lean=lean)


def examples_of(number: int, turn: int = 0) -> list[Example]:
    """Return training examples for a policy.

    With these seeds no indexer gives two tokens the same score; on a tie transformers' choice is arbitrary.
    """
    return groups(5 + number + 10 * turn, vocabulary=VOCABULARY)


class Merged:
    """transformers' eager model with one policy's A and B merged into its weights; A and B are autograd leaves."""

    def __init__(self, trainer: Trainer, policy: str, model: PreTrainedModel) -> None:
        self._policy, self.model = trainer.policy(policy), model
        self._modules = find_modules(model)
        self.model.requires_grad_(False)
        self.model.set_attn_implementation("eager")
        if any(module.experts for module in self._modules.values()):
            self.model.set_experts_implementation("eager")
        self.weights = self._policy.weights.clone().requires_grad_()

    def logprobs(self, example: Example) -> torch.Tensor:
        """Return the log-probabilities of an example's targets [T], by one plain forward pass."""
        told = {"input_ids": torch.tensor([list(example.tokens)]), "use_cache": False}
        logits: torch.Tensor = functional_call(self.model, self._merge(), kwargs=told).logits[0].float()
        return logits.log_softmax(-1).gather(1, torch.tensor(list(example.targets))[:, None])[:, 0]

    def _merge(self) -> dict[str, torch.Tensor]:
        merged: dict[str, torch.Tensor] = {}
        form = self._policy.form
        for (place, a, b), scaling in zip(halves(form.layout, self.weights), form.scalings, strict=True):
            module = self._modules[place.path]
            delta = torch.einsum("eri,ero->eoi", a, b) * scaling  # [E, out, in]
            name = module.part_of if module.experts else f"{place.path}.weight"
            weight = merged[name] if name in merged else self.model.get_parameter(name).clone()
            if not module.experts:
                merged[name] = weight + delta[0]
                continue
            if self.model.get_submodule(place.path.rpartition(".")[0]).is_transposed:
                weight[:, :, module.outputs] += delta.mT
            else:
                weight[:, module.outputs] += delta
            merged[name] = weight
        return merged


def reference(
    merged: Merged,
    examples: Sequence[Example],
    before: Callable[[Example], None] = lambda _: None,
    *,
    by_sequence: bool = False,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the policy's gradient under plain importance sampling, and each example's log-probabilities.

    `before` is called with each example before its forward pass. By sequence, an example has one ratio, the geometric
    mean of its tokens'.
    """
    total, found = torch.zeros(()), []
    for example in examples:
        before(example)
        logprobs = merged.logprobs(example)
        found.append(logprobs.detach())
        logs, weights = logprobs - torch.tensor(example.sampler_logprobs), torch.tensor(example.weights)
        ratio = ((logs * weights).sum() / weights.sum() if by_sequence else logs).exp()
        total = total - (ratio * torch.tensor(example.advantages) * weights).sum()
    (gradient,) = torch.autograd.grad(total, merged.weights)
    return gradient, found


SUMS = Loss(type="importance_sampling", ratio_low=0.0, ratio_high=0.0)
LEAN = ("qwen3_moe", True)

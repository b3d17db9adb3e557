"""A request's logits, changed before a token is chosen: by a bias, and by penalties on tokens that came already.

In vLLM's order and with its meaning: repetition counts the prompt too (CTRL, arXiv 1909.05858, section 4.1),
frequency and presence the completion alone, as OpenAI's do.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from mint_engine.scheduling.request import Sampling


class Said(NamedTuple):
    """The tokens of a request so far."""

    sampling: Sampling
    tokens: Sequence[int]  # of the prompt, then of the completion
    prompt: int  # how many are the prompt's


def penalise(logits: torch.Tensor, said: Sequence[Said]) -> torch.Tensor:
    """logits [n, V] -> [n, V] float32, each row as its request has it."""
    changed = logits.to(torch.float32, copy=True)
    for row, each in zip(changed, said, strict=True):
        _change(row, each)
    return changed


def _change(row: torch.Tensor, said: Said) -> None:
    sampling = said.sampling
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        row[list(tokens)] += torch.tensor(biases, device=row.device)
    if sampling.repetition_penalty != 1.0:
        seen = torch.unique(torch.tensor(said.tokens, device=row.device))
        before, penalty = row[seen], sampling.repetition_penalty
        row[seen] = torch.where(before > 0, before / penalty, before * penalty)
    if (sampling.frequency_penalty or sampling.presence_penalty) and len(said.tokens) > said.prompt:
        completion = torch.tensor(said.tokens[said.prompt :], device=row.device)
        found, counts = torch.unique(completion, return_counts=True)
        row[found] -= sampling.frequency_penalty * counts + sampling.presence_penalty

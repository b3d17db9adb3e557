"""A request's logits, changed before a token is chosen: by a bias, and by penalties on tokens that came already.

In vLLM's order and with its meaning: repetition counts the prompt too (CTRL, arXiv 1909.05858, section 4.1),
frequency and presence the completion alone, as OpenAI's do.
"""

from collections.abc import Sequence

import torch

from mint_engine.requests.token_counts import Said
from mint_engine.scheduling.request import Sampling


def penalise(logits: torch.Tensor, asked: Sequence[tuple[Sampling, Said]]) -> torch.Tensor:
    """logits [n, V] -> [n, V] float32, each row as its request has it after what it has said."""
    changed = logits.to(torch.float32, copy=True)
    for row, (sampling, said) in zip(changed, asked, strict=True):
        _change(row, sampling, said)
    return changed


def _change(row: torch.Tensor, sampling: Sampling, said: Said) -> None:
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        row[list(tokens)] += torch.tensor(biases, device=row.device)
    if sampling.repetition_penalty != 1.0:
        seen = said.seen.to(row.device)
        before, penalty = row[seen], sampling.repetition_penalty
        row[seen] = torch.where(before > 0, before / penalty, before * penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        chosen, times = said.chosen.to(row.device), said.times.to(row.device)
        row[chosen] -= sampling.frequency_penalty * times + sampling.presence_penalty

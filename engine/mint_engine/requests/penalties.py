"""Changes a request's logits before a token is chosen: by biases, and by penalties on tokens that occurred already.

Order and meaning are vLLM's: repetition counts the prompt too (CTRL, arXiv 1909.05858, section 4.1), frequency and
presence only the completion, as OpenAI's do.
"""

from collections.abc import Sequence

import torch

from mint_engine.requests.token_counts import TokenCounts
from mint_engine.scheduling.request import Sampling


def penalise(logits: torch.Tensor, asked: Sequence[tuple[Sampling, TokenCounts]]) -> torch.Tensor:
    """Return a copy of logits [n, V] in float32 with each row's biases and penalties applied."""
    changed = logits.to(torch.float32, copy=True)
    for row, (sampling, counts) in zip(changed, asked, strict=True):
        _change(row, sampling, counts)
    return changed


def _change(row: torch.Tensor, sampling: Sampling, counts: TokenCounts) -> None:
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        row[list(tokens)] += torch.tensor(biases, device=row.device)
    if sampling.repetition_penalty != 1.0:
        seen = counts.seen.to(row.device)
        before, penalty = row[seen], sampling.repetition_penalty
        row[seen] = torch.where(before > 0, before / penalty, before * penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        chosen, times = counts.chosen.to(row.device), counts.times.to(row.device)
        row[chosen] -= sampling.frequency_penalty * times + sampling.presence_penalty

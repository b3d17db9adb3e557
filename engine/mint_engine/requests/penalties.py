"""Changes requests' logits before tokens are chosen: by biases, and by penalties on tokens that occurred already.

Order and meaning are vLLM's: repetition counts the prompt too (CTRL, arXiv 1909.05858, section 4.1), frequency and
presence only the completion, as OpenAI's do. On a GPU all rows are changed together: each operation costs more there
than the numbers of a few more rows. On a CPU it is faster to change one row after another, with the same result.
"""

from collections.abc import Sequence

import torch

from mint_engine.model.device import put
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.token_counts import TokenCounts

Asked = Sequence[tuple[Sampling, TokenCounts]]
_Places = list[tuple[torch.Tensor, torch.Tensor]]  # places [k] int64 in the logits of all rows; numbers [k] float32


def penalise(logits: torch.Tensor, asked: Asked) -> torch.Tensor:
    """Return a copy of logits [n, V] in float32 with each row's biases and penalties applied."""
    changed = logits.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if changed.device.type == "cpu":
        change_one_by_one(changed, asked)
    else:
        change_together(changed, asked)
    return changed


def change_one_by_one(logits: torch.Tensor, asked: Asked) -> None:
    """Apply biases and penalties to logits [n, V] float32 in place, row by row."""
    for row, (sampling, counts) in zip(logits, asked, strict=True):
        if sampling.logit_bias:
            tokens, biases = zip(*sampling.logit_bias, strict=True)
            row[list(tokens)] += torch.tensor(biases)
        if sampling.repetition_penalty != 1.0:
            before, penalty = row[counts.seen], sampling.repetition_penalty
            row[counts.seen] = torch.where(before > 0, before / penalty, before * penalty)
        if sampling.frequency_penalty or sampling.presence_penalty:
            row[counts.chosen] -= sampling.frequency_penalty * counts.times + sampling.presence_penalty


def change_together(logits: torch.Tensor, asked: Asked) -> None:
    """Apply biases and penalties to contiguous logits [n, V] float32 in place, to all rows at once."""
    every = logits.view(-1)  # [n * V]
    biases, repetitions, counted = _Places(), _Places(), _Places()
    for row, (sampling, counts) in enumerate(asked):
        start, penalty = row * logits.shape[1], sampling.repetition_penalty
        if sampling.logit_bias:
            tokens, numbers = zip(*sampling.logit_bias, strict=True)
            biases.append((torch.tensor(tokens) + start, torch.tensor(numbers)))
        if penalty != 1.0:
            repetitions.append((counts.seen + start, torch.full(counts.seen.shape, penalty)))
        if sampling.frequency_penalty or sampling.presence_penalty:
            less = sampling.frequency_penalty * counts.times + sampling.presence_penalty
            counted.append((counts.chosen + start, less))
    (biased, added), (seen, penalties), (chosen, less) = _copied(logits.device, biases, repetitions, counted)
    if biases:
        every[biased] += added
    if repetitions:
        before = every[seen]
        every[seen] = torch.where(before > 0, before / penalties, before * penalties)
    if counted:
        every[chosen] -= less


def _copied(device: torch.device, *kinds: _Places) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the places and numbers of each kind, one after another, on the device; in two copies of all."""
    places = [torch.cat([torch.empty(0, dtype=torch.int64), *(each for each, _ in kind)]) for kind in kinds]
    numbers = [torch.cat([torch.empty(0), *(each for _, each in kind)]) for kind in kinds]
    lengths = [len(each) for each in places]
    on_device = [torch.split(put(torch.cat(each), device), lengths) for each in (places, numbers)]
    return list(zip(*on_device, strict=True))

"""What a naive engine does: one request at a time, no cache, no pages, one plain pass over all tokens."""

import torch

from mint_engine.requests.parameters import Sampling
from mint_engine.requests.sampling import choose_tokens, invert, keep_likely, uniform

NEAR_TIE = 1e-4  # logits of float32
NEAR_BORDER = 1e-6  # of a distribution


def may_choose(logits: torch.Tensor, token: int, sampling: Sampling, index: int) -> bool:
    """Whether `token` is the right choice after logits [V], or as good: the engines sum in different orders, so they
    may differ at a tie, or at a border between two tokens' shares of the distribution."""
    if choose_tokens(logits[None], [(sampling, index)]) == [token]:
        return True
    if not sampling.temperature:
        return bool(logits[token] >= logits.max() - NEAR_TIE)
    probabilities = torch.softmax(logits / sampling.temperature, -1)
    keep_likely(probabilities[None], [sampling])
    drawn = uniform(sampling.seed, index)
    borders = [max(0.0, drawn - NEAR_BORDER), min(1.0 - NEAR_BORDER, drawn + NEAR_BORDER)]
    least, most = invert(probabilities.expand(2, -1), borders)
    return least <= token <= most and bool(probabilities[token] > 0)

"""The tokens that grammars let come next, looked for in the rows of a step together, on several threads."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from llguidance import LLExecutor

from mint_engine.requests.grammar import Grammar

_WORD = 32  # bits
_ALL = np.uint32(0xFFFFFFFF)


def mask(grammars: Sequence[Grammar | None], logits: torch.Tensor) -> dict[int, Exception]:
    """Take from each row of logits [n, V], in place, all tokens that may not come next by its grammar, if it has one.

    Those beyond the tokenizer's never may. Returns by its place what kept a row from that, and is nothing to the
    others: what `Grammar.settle` raises, or a defect. The grammars are over one vocabulary.
    """
    places = [at for at, grammar in enumerate(grammars) if grammar is not None]
    own = [grammar for grammar in grammars if grammar is not None]
    if not own:
        return {}
    found, troubles = _look(own)
    size = logits.shape[1]
    words = -(-size // _WORD)
    allowed = np.zeros((len(own), words), dtype=np.uint32)
    allowed[:, : found.shape[1]] = found[:, :words]
    if size % _WORD:
        allowed[:, -1] &= ~(_ALL << np.uint32(size % _WORD))
    for at, grammar in enumerate(own):
        try:
            grammar.settle(any_may=bool(allowed[at].any()))
        except Exception as error:  # noqa: BLE001 - one request's own trouble
            troubles.setdefault(at, error)
    forbidden = np.zeros((len(grammars), words), dtype=np.uint32)
    forbidden[places] = ~allowed
    bits = np.unpackbits(forbidden.view(np.uint8), axis=1, count=size, bitorder="little")
    logits.masked_fill_(torch.from_numpy(bits.view(np.bool_)).to(logits.device), -torch.inf)
    return {places[at]: error for at, error in troubles.items()}


def _look(grammars: Sequence[Grammar]) -> tuple[np.ndarray, dict[int, Exception]]:
    """What may come next, a bit for each of the tokenizer's tokens: [n, words]; and what kept from that, by place."""
    found = np.zeros((len(grammars), -(-grammars[0].tokens // _WORD)), dtype=np.uint32)
    rows = [(grammar.matcher, at) for at, grammar in enumerate(grammars)]
    try:
        _threads().unsafe_compute_mask_ptr(rows, found.ctypes.data, found.shape[1] * found.itemsize, len(rows))
    except Exception:  # noqa: BLE001 - of whichever of them it is, the others' are found without it
        return _one_by_one(grammars, found)
    return found, {}


def _one_by_one(grammars: Sequence[Grammar], found: np.ndarray) -> tuple[np.ndarray, dict[int, Exception]]:
    troubles: dict[int, Exception] = {}
    for at, grammar in enumerate(grammars):
        try:
            found[at] = np.frombuffer(grammar.matcher.compute_bitmask(), dtype=np.uint32)
        except Exception as error:  # noqa: BLE001 - as above
            troubles[at] = error
    return found, troubles


@cache
def _threads() -> LLExecutor:
    """As many as a step has, which waits for them."""
    return LLExecutor(num_threads=torch.get_num_threads())

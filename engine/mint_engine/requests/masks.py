"""Computes grammars' masks, the tokens that may come next, for all rows of a step together, on several threads.

Most masks take about 50 us, a few a hundred milliseconds. Masks that were slow before come last, and a step has only
a limited time for masks: the remaining rows are late, and may get their turn in the next step.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from llguidance import LLExecutor

from mint_engine.model.device import put
from mint_engine.requests.grammar import SLOW_S, Grammar

BUDGET_S = 0.02  # time in a step after which no more masks are begun

_WORD = 32  # bits
_ALL = np.uint32(0xFFFFFFFF)
_EACH = 2  # masks per thread between two checks of the clock


class Late(Exception):
    """Not an error: there was no time left to compute a row's mask."""


def mask(
    grammars: Sequence[Grammar | None], logits: torch.Tensor, turns: Sequence[int] | None = None
) -> dict[int, Exception]:
    """Exclude from each row of logits [n, V], in place, all tokens that its grammar, if any, does not allow next.

    Tokens beyond the tokenizer's vocabulary are never allowed. Returns, by row, why a row could not be masked, which
    does not affect the others: an error of `Grammar.check_mask`, a defect, or Late. `turns` are all rows in the order
    of their turns; the first is never late. All grammars must have the same vocabulary.
    """
    turn = range(len(grammars)) if turns is None else turns
    rows = [(at, grammar) for at in turn if (grammar := grammars[at]) is not None]
    rows.sort(key=lambda row: row[1].thinks)  # these masks take no time, so that the first of the others is not late
    places, own = [at for at, _ in rows], [grammar for _, grammar in rows]
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
        if isinstance(troubles.get(at), Late):
            continue
        try:
            grammar.check_mask(any_allowed=bool(allowed[at].any()))
        except Exception as error:  # noqa: BLE001 - affects only this request
            troubles.setdefault(at, error)
    forbidden = np.zeros((len(grammars), words), dtype=np.uint32)
    forbidden[places] = ~allowed
    bits = np.unpackbits(forbidden.view(np.uint8), axis=1, count=size, bitorder="little")
    logits.masked_fill_(put(torch.from_numpy(bits.view(np.bool_)), logits.device), -torch.inf)
    return {places[at]: error for at, error in troubles.items()}


def _look(grammars: Sequence[Grammar]) -> tuple[np.ndarray, dict[int, Exception]]:
    """Return masks [n, words] with a bit for each of the tokenizer's tokens, and by row why one is missing."""
    found = np.zeros((len(grammars), -(-grammars[0].tokens // _WORD)), dtype=np.uint32)
    troubles: dict[int, Exception] = {}
    began = time.perf_counter()

    def in_time(places: Iterable[int]) -> Iterator[int]:
        for at in places:
            if at and time.perf_counter() - began >= BUDGET_S:
                troubles[at] = Late()
            else:
                yield at

    quick = [at for at, grammar in enumerate(grammars) if grammar.mask_s < SLOW_S and not grammar.thinks]
    slow = [at for at, grammar in enumerate(grammars) if grammar.mask_s >= SLOW_S and not grammar.thinks]
    threads = torch.get_num_threads()
    for start in range(0, len(quick), _EACH * threads):
        if some := list(in_time(quick[start : start + _EACH * threads])):
            _together(some, grammars, found, troubles)
    left = iter(slow)  # each thread takes the next one
    begun = [_alone().submit(_one_by_one, in_time(left), grammars, found, troubles) for _ in slow[:threads]]
    for each in begun:
        each.result()
    for at, grammar in enumerate(grammars):
        grammar.allow_thought(found[at])
    return found, troubles


def _together(
    places: Sequence[int], grammars: Sequence[Grammar], found: np.ndarray, troubles: dict[int, Exception]
) -> None:
    rows = [(grammars[at].matcher, at) for at in places]
    began = time.perf_counter()
    try:
        _threads().unsafe_compute_mask_ptr(rows, found.ctypes.data, found.shape[1] * found.itemsize, len(found))
    except Exception:  # noqa: BLE001 - one by one, the others' masks are found in spite of it
        _one_by_one(places, grammars, found, troubles)
        return
    took = (time.perf_counter() - began) * min(len(places), torch.get_num_threads())
    for at in places:  # not charged: only a mask that is computed alone shows its own time
        grammars[at].record_time(took / len(places), paid_s=0.0)


def _one_by_one(
    places: Iterable[int], grammars: Sequence[Grammar], found: np.ndarray, troubles: dict[int, Exception]
) -> None:
    for at in places:
        began = time.thread_time()
        try:
            grammars[at].matcher.unsafe_compute_mask_ptr(found[at].ctypes.data, found[at].nbytes)
        except Exception as error:  # noqa: BLE001 - as above
            troubles[at] = error
        took = time.thread_time() - began
        grammars[at].record_time(took, paid_s=took)


@cache
def _threads() -> LLExecutor:
    """The threads for masks computed together: as many as a step has, since it waits for them."""
    return LLExecutor(num_threads=torch.get_num_threads())


@cache
def _alone() -> ThreadPoolExecutor:
    """As many threads for masks computed one by one, whose time is measured."""
    return ThreadPoolExecutor(torch.get_num_threads(), "mask")

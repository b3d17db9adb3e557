"""The tokens that grammars let come next, looked for in the rows of a step together, on several threads.

Most masks take some 50 us, few a hundred milliseconds. Those that took long before come last, and a step has but so
much time for masks: rows that come after it are late, and may come to their turn in the next step.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from llguidance import LLExecutor

from mint_engine.requests.grammar import SLOW_S, Grammar

BUDGET_S = 0.02  # of a step, after which no more masks are begun

_WORD = 32  # bits
_ALL = np.uint32(0xFFFFFFFF)
_EACH = 2  # masks for each thread, between two looks at the clock


class Late(Exception):
    """No error: there was no more time to look for a row's mask."""


def mask(
    grammars: Sequence[Grammar | None], logits: torch.Tensor, turns: Sequence[int] | None = None
) -> dict[int, Exception]:
    """Take from each row of logits [n, V], in place, all tokens that may not come next by its grammar, if it has one.

    Those beyond the tokenizer's never may. Returns by its place what kept a row from that, and is nothing to the
    others: what `Grammar.settle` raises, a defect, or Late. `turns` are all places, whose turn it is first; that one
    is never late. The grammars are over one vocabulary.
    """
    places = [at for at in (range(len(grammars)) if turns is None else turns) if grammars[at] is not None]
    own = [grammar for at in places if (grammar := grammars[at]) is not None]
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
    troubles: dict[int, Exception] = {}
    began = time.perf_counter()

    def in_time(places: Iterable[int]) -> Iterator[int]:
        for at in places:
            if at and time.perf_counter() - began >= BUDGET_S:
                troubles[at] = Late()
            else:
                yield at

    quick = [at for at, grammar in enumerate(grammars) if grammar.mask_s < SLOW_S]
    slow = [at for at, grammar in enumerate(grammars) if grammar.mask_s >= SLOW_S]
    threads = torch.get_num_threads()
    for start in range(0, len(quick), _EACH * threads):
        if some := list(in_time(quick[start : start + _EACH * threads])):
            _together(some, grammars, found, troubles)
    left = iter(slow)  # of which each thread takes the next
    begun = [_alone().submit(_one_by_one, in_time(left), grammars, found, troubles) for _ in slow[:threads]]
    for each in begun:
        each.result()
    return found, troubles


def _together(
    places: Sequence[int], grammars: Sequence[Grammar], found: np.ndarray, troubles: dict[int, Exception]
) -> None:
    rows = [(grammars[at].matcher, at) for at in places]
    began = time.perf_counter()
    try:
        _threads().unsafe_compute_mask_ptr(rows, found.ctypes.data, found.shape[1] * found.itemsize, len(found))
    except Exception:  # noqa: BLE001 - of whichever of them it is, the others' are found without it
        _one_by_one(places, grammars, found, troubles)
        return
    took = (time.perf_counter() - began) * min(len(places), torch.get_num_threads())
    for at in places:  # which of them took it shows where each is looked for alone: until then nobody pays
        grammars[at].looked(took / len(places), paid_s=0.0)


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
        grammars[at].looked(took, paid_s=took)


@cache
def _threads() -> LLExecutor:
    """As many as a step has, which waits for them."""
    return LLExecutor(num_threads=torch.get_num_threads())


@cache
def _alone() -> ThreadPoolExecutor:
    """As many, each of which tells how long it took."""
    return ThreadPoolExecutor(torch.get_num_threads(), "mask")

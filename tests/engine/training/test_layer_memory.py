"""What an update takes for each row of a long example is at most what engines and `mint plan` count for it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions
from torch.utils._python_dispatch import TorchDispatchMode

from mint_contracts.training import Loss
from mint_engine.model.modules import find_modules
from mint_engine.training import attend, generic_pass, routed
from mint_engine.training.example import Example, PolicyBatch
from mint_engine.training.pieces import PIECE_ROWS
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.families import VOCABULARY
from tests.engine.training.at_once import create
from tests.engine.training.frontier_families import base_of
from tests.engine.training.scene import learn

_Weak: Any = reductions.StorageWeakRef  # whose functions have no types


class _Peak(TorchDispatchMode):
    """Records the most bytes that tensors made meanwhile have taken at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self._now = 0, 0
        self._there = dict[int, tuple[Any, int]]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = func(*args, **(kwargs or {}))
        for each in given if isinstance(given, tuple | list) else (given,):
            if isinstance(each, torch.Tensor):
                self._note(each.untyped_storage())
        return given

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._there:
            return
        self._there[storage._cdata] = _Weak(storage), storage.nbytes()
        self._now += storage.nbytes()
        if self._now > self.found:  # unless some have been freed
            self._there = {key: each for key, each in self._there.items() if not each[0].expired()}
            self._now = sum(nbytes for _, nbytes in self._there.values())
            self.found = max(self.found, self._now)


def peak(family: str, rows: int) -> int:
    """The most bytes that an update of one example takes."""
    base = replace(base_of(family, torch.bfloat16), context_length=0)
    trainer = Trainer(base, find_modules(base.model), max_rank=2, lean=False)
    create(trainer, "p", PolicySettings(rank=2))
    tokens = [(7 * at * at + at) % VOCABULARY for at in range(rows + 1)]
    example = Example(tokens[:-1], tokens[1:], [0.0] * (rows - 1) + [1.0])
    found = _Peak()
    with found:
        learn(trainer, [PolicyBatch("p", [example], Loss(type="cross_entropy"))])
    return found.found


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_moe", "deepseek_v3"])
def test_rows_beyond_a_piece_take_at_most_what_is_counted(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And most of it: what is computed some rows at a time does not grow with their number."""
    kept = generic_pass.kept_of(base_of(family, torch.bfloat16))
    counted = kept(2 * PIECE_ROWS) - kept(2 * PIECE_ROWS - 128)
    for cutting in (attend, routed):
        monkeypatch.setattr(cutting, "PIECE_ROWS", 16)
    monkeypatch.setattr(routed, "AT_ONCE", 1)
    assert counted / 2 < peak(family, 256) - peak(family, 128) <= counted

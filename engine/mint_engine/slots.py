"""Fixed places for adapters: a slot is one row of memory, in which one revision's weights lie packed.

Packed means as `packed` has it: for each module that the adapter targets A [r, in] and then B transposed [r, out],
without gaps. Small tables tell where in its row each slot's part of each module begins, so that adapters of any ranks
and targets live side by side, none is padded, and to load one is to copy one run.

Letters in shapes: S slots, M modules, W elements of a slot, P parts of one adapter, R the largest rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch

from mint_contracts.errors import ShapeMismatch
from mint_engine.adapter import Module
from mint_engine.check import Fit, check_packed
from mint_engine.device import zeros
from mint_engine.packed import Layout, Packed

NO_SLOT = -1  # the bare base
ABSENT = -1  # the place of a module that an adapter leaves alone


@dataclass(frozen=True)
class _Columns:
    """What one layout writes into a slot's column of the tables; all [P]."""

    modules: np.ndarray[tuple[int], np.dtype[np.int64]]
    places: np.ndarray[tuple[int], np.dtype[np.int64]]
    ranks: np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass(frozen=True)
class _Tables:
    """The tables of `Slots` as arrays that share their memory: writing a column of them is one call."""

    places: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    ranks: np.ndarray[tuple[int, ...], np.dtype[np.int32]]
    scalings: np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class Slots:
    """The slots of one engine.

    `load` and `clear` run on any thread, but only on a slot that no running request refers to: a step reads
    nothing but the slots of its own rows, so it can never see half of an adapter. Who calls them sees to that.
    What lies in a row beyond its tenant's weights is zero, always.
    """

    def __init__(
        self, modules: Mapping[str, Module], count: int, max_rank: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.modules = dict(modules)
        self._fit = Fit(self.modules, max_rank)
        self._columns: WeakKeyDictionary[Layout, _Columns] = WeakKeyDictionary()
        self.count = count
        self.max_rank = max_rank
        self.dtype = dtype
        self.device = device
        self.index = {path: at for at, path in enumerate(self.modules)}
        self.shapes = [(module.in_features, module.out_features) for module in self.modules.values()]
        self.experts = [max(module.experts, 1) for module in self.modules.values()]
        widest = max_rank * sum(many * sum(shape) for many, shape in zip(self.experts, self.shapes, strict=True))
        # What no adapter reaches is never written, and so costs no memory on CPU.
        self.memory = zeros((count, widest), dtype, device)  # [S, W]
        # Always in host memory: steps are planned there.
        self.places = torch.full((len(self.shapes), count), ABSENT, dtype=torch.int64)  # [M, S], in elements
        self.ranks = torch.zeros((len(self.shapes), count), dtype=torch.int32)  # [M, S]
        self.scalings = torch.zeros((len(self.shapes), count), dtype=torch.float32)  # [M, S]
        self._tables = _Tables(self.places.numpy(), self.ranks.numpy(), self.scalings.numpy())
        self.filled = [0] * count  # elements of each row that its tenant has written

    @property
    def bytes(self) -> int:
        """Bytes reserved for all slots on the device."""
        return self.memory.nbytes

    def part(self, module: int, slot: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A [r, in] and B transposed [r, out] of a slot's tenant, where they lie; None where it leaves that alone.

        Of E stacked experts they have E times as many rows, one expert's after another's.
        """
        place, rank = int(self.places[module, slot]), int(self.ranks[module, slot]) * self.experts[module]
        if place == ABSENT:
            return None
        wide, high = self.shapes[module]
        row, middle = self.memory[slot], place + rank * wide
        return row[place:middle].view(rank, wide), row[middle : middle + rank * high].view(rank, high)

    def load(self, slot: int, packed: Packed) -> None:
        """Put one revision into `slot`, in place of whatever was there: one copy of its run.

        Raises UnknownTargetModules, RankTooLarge or ShapeMismatch before anything is written.
        """
        columns = self._columns_of(packed)
        scalings = np.array(packed.header.scalings, dtype=np.float32)
        count, filled = packed.run.numel(), self.filled[slot]
        self._forget(slot)
        self.filled[slot] = max(count, filled)  # until the copy has ended
        row = self.memory[slot]
        _copy(row[:count], packed.run)
        _zero(row[count:filled])
        self.filled[slot] = count
        self._tables.places[columns.modules, slot] = columns.places
        self._tables.ranks[columns.modules, slot] = columns.ranks
        self._tables.scalings[columns.modules, slot] = scalings
        self._settle()

    def clear(self, slot: int) -> None:
        """Zero everything that the slot's tenant wrote."""
        self._forget(slot)
        _zero(self.memory[slot, : self.filled[slot]])
        self.filled[slot] = 0
        self._settle()

    def is_empty(self, slot: int) -> bool:
        """Nothing of any tenant is left in a slot, by its tables."""
        return self.filled[slot] == 0 and bool((self._tables.places[:, slot] == ABSENT).all())

    def _forget(self, slot: int) -> None:
        self._tables.places[:, slot] = ABSENT
        self._tables.ranks[:, slot] = 0
        self._tables.scalings[:, slot] = 0.0

    def _columns_of(self, packed: Packed) -> "_Columns":
        """What a layout writes into the tables; checked and computed once for all adapters that have it."""
        layout, subject = packed.header.layout, f"revision {packed.revision}"
        if packed.run.dtype != self.dtype or packed.run.numel() != layout.elements:
            raise ShapeMismatch(subject, f"is {packed.run.numel()} of {packed.run.dtype}, for {self.dtype} slots")
        columns = self._columns.get(layout)
        if columns is None:
            check_packed(packed.header, self._fit, subject)
            columns = self._columns[layout] = _Columns(
                modules=np.array([self.index[place.path] for place in layout.places], dtype=np.int64),
                places=np.array([place.offset for place in layout.places], dtype=np.int64),
                ranks=np.array([place.rank for place in layout.places], dtype=np.int32),
            )
        return columns

    def _settle(self) -> None:
        """Wait until the device has the copies: a step may follow on another stream."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def _copy(into: torch.Tensor, run: torch.Tensor) -> None:
    """Copy a run. On CPU by one thread, with no lock held: the others go on with the step that is running."""
    if into.device.type == "cpu":
        np.copyto(into.view(torch.uint8).numpy(), run.view(torch.uint8).numpy())
    else:
        into.copy_(run, non_blocking=True)


def _zero(row: torch.Tensor) -> None:
    if row.device.type == "cpu":
        row.view(torch.uint8).numpy().fill(0)
    else:
        row.zero_()

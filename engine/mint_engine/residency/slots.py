"""Fixed places for adapters: a slot is one row of memory, in which one revision's weights lie packed.

Packed means as `packed` has it: for each module that the adapter targets A [r, in] and then B transposed [r, out],
without gaps. Small tables tell where in its row each slot's part of each module begins, so that adapters of any ranks
and targets live side by side, none is padded, and to load one is to put one run into place (see `slot_rows`).

Letters in shapes: S slots, M modules, W elements of a slot, P parts of one adapter, R the largest rank.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from mint_contracts.errors import ShapeMismatch
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit, check_packed
from mint_engine.adapters.cut import cut_layout, cut_packed
from mint_engine.adapters.packed import Layout, Packed
from mint_engine.parallel.shares import Cut, ModuleCut
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.reading import read
from mint_engine.residency.slot_rows import SlotRows
from mint_engine.residency.staying import Stay, Stayed

NO_SLOT = -1  # the bare base
ABSENT = -1  # the place of a module that an adapter leaves alone


@dataclass(frozen=True)
class _Columns:
    """What one layout writes into a slot's column of the tables."""

    layout: Layout  # of the run in a row: a rank's share of the adapter's, or the same
    modules: np.ndarray[tuple[int], np.dtype[np.int64]]  # [P]
    ranks: np.ndarray[tuple[int], np.dtype[np.int32]]  # [M]
    places: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]]  # [M], by where in the row the run begins


@dataclass(frozen=True)
class _Tables:
    """The tables of `Slots` as arrays that share their memory: writing a column of them is one call."""

    places: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    ranks: np.ndarray[tuple[int, ...], np.dtype[np.int32]]
    scalings: np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class Others(Protocol):
    """The engine's other ranks: what is done to a slot here, they do to theirs, and are waited for on exit."""

    def load(self, slot: int, packed: Packed) -> AbstractContextManager[None]:
        """Raises SourceUnavailable on exit where one of them could not; its slot is to be cleared then."""
        ...

    def clear(self, slot: int) -> AbstractContextManager[None]:
        """Raises EngineUnavailable where one of them has ended."""
        ...


class Alone:
    """No other ranks."""

    def load(self, slot: int, packed: Packed) -> AbstractContextManager[None]:
        """Nobody else has the slot."""
        return nullcontext()

    def clear(self, slot: int) -> AbstractContextManager[None]:
        """Nobody else has the slot."""
        return nullcontext()


class Slots:
    """The slots of one engine, or one rank's part of them: `cuts` then say what of each module it holds.

    `load` and `clear` run on any thread, but only on a slot that no running request refers to: a step reads
    nothing but the slots of its own rows, so it can never see half of an adapter. Who calls them sees to that.
    What lies in a row beyond its tenant is zero, always.
    """

    def __init__(
        self, modules: Mapping[str, Module], count: int, max_rank: int, dtype: torch.dtype, device: torch.device,
        cuts: Mapping[str, ModuleCut] | None = None, others: Others | None = None,
    ) -> None:  # fmt: skip
        self.modules = dict(modules)
        self._cuts, self._others = cuts, others or Alone()
        self._fit = Fit(self.modules, max_rank)
        self._columns: WeakKeyDictionary[Layout, _Columns] = WeakKeyDictionary()
        self.count = count
        self.max_rank = max_rank
        self.dtype = dtype
        self.device = device
        self.index = {path: at for at, path in enumerate(self.modules)}
        held = [(module, (cuts or {}).get(path, ModuleCut())) for path, module in self.modules.items()]
        self.shapes = [_shape(module, cut) for module, cut in held]
        self.experts = [cut.experts.size if cut.experts else max(module.experts, 1) for module, cut in held]
        per_rank = sum(many * sum(shape) for many, shape in zip(self.experts, self.shapes, strict=True))
        self._widest = max_rank * per_rank
        self._rows = SlotRows(count, self._widest, dtype, device)
        self.memory = self._rows.memory  # [S, W]
        # Always in host memory: steps are planned there.
        self.places = torch.full((len(self.shapes), count), ABSENT, dtype=torch.int64)  # [M, S], in elements
        self.ranks = torch.zeros((len(self.shapes), count), dtype=torch.int32)  # [M, S]
        self.scalings = torch.zeros((len(self.shapes), count), dtype=torch.float32)  # [M, S]
        self._tables = _Tables(self.places.numpy(), self.ranks.numpy(), self.scalings.numpy())
        self.filled = self._rows.filled  # elements of each row up to its tenant's end

    @property
    def bytes(self) -> int:
        """Bytes that all slots can hold on the device."""
        return self.count * self._widest * self.dtype.itemsize

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

    def ends(self, slot: int) -> list[int]:
        """At which byte of a slot's row its part of each module ends [M]; 0 of what its tenant leaves alone."""
        places, ranks = self._tables.places[:, slot].tolist(), self._tables.ranks[:, slot].tolist()
        parts = zip(places, ranks, self.experts, self.shapes, strict=True)
        return [
            0 if place == ABSENT else (place + rank * many * sum(shape)) * self.dtype.itemsize
            for place, rank, many, shape in parts
        ]

    def load(self, slot: int, packed: Packed, *, keep: bool = True, arrival: Arrival | None = None) -> None:
        """Put one revision into `slot`, in place of whatever was there.

        Without `keep` nobody reads its run afterwards, and its memory may become the slot's. An `arrival` hears of
        what is there already; until it ends it alone says how much may be read. Raises
        UnknownTargetModules, RankTooLarge or ShapeMismatch before anything is changed, LostBlock where its file
        can not be read, and what `Others` do: clear the slot then.
        """
        columns = self._columns_of(packed)
        scalings = np.zeros(len(self.shapes), dtype=np.float32)
        scalings[columns.modules] = packed.header.scalings
        if self._cuts is not None:  # each rank copies its own parts, and might miss what another's lack
            read(packed)
        with self._others.load(slot, packed):
            self._load_own(slot, packed, columns, scalings, keep=keep, arrival=arrival)

    def _load_own(
        self,
        slot: int,
        packed: Packed,
        columns: _Columns,
        scalings: np.ndarray[tuple[int], np.dtype[np.float32]],
        *,
        keep: bool,
        arrival: Arrival | None,
    ) -> None:
        self._forget(slot)
        own = packed if self._cuts is None else cut_packed(packed, columns.layout, self._cuts)

        def begin(start: int) -> None:
            self._tables.places[:, slot] = self._places_from(start, columns)
            self._tables.ranks[:, slot] = columns.ranks
            self._tables.scalings[:, slot] = scalings

        on_present = partial(_note_present, arrival, begin) if arrival is not None else None
        begin(self._rows.load(slot, own, keep=keep, on_present=on_present))
        self._settle()

    def clear(self, slot: int) -> None:
        """Leave nothing of the slot's tenant."""
        with self._others.clear(slot):
            self._forget(slot)
            self._rows.clear(slot)
            self._settle()

    @property
    def stay(self) -> Stay:
        """Whether what lies in slots stays in memory."""
        return self._rows.stay

    def tend(self) -> Stayed:
        """Have it stay there; any thread may call this at any time."""
        return self._rows.tend()

    def is_empty(self, slot: int) -> bool:
        """Nothing of any tenant is left in a slot, by its tables."""
        return self.filled[slot] == 0 and bool((self._tables.places[:, slot] == ABSENT).all())

    def _forget(self, slot: int) -> None:
        self._tables.places[:, slot] = ABSENT
        self._tables.ranks[:, slot] = 0
        self._tables.scalings[:, slot] = 0.0

    def _columns_of(self, packed: Packed) -> _Columns:
        """What a layout writes into the tables; checked and computed once for all adapters that have it."""
        layout, subject = packed.header.layout, f"revision {packed.revision}"
        if {packed.header.dtype, packed.run.dtype} != {self.dtype} or packed.run.numel() != layout.elements:
            raise ShapeMismatch(subject, f"is {packed.run.numel()} of {packed.run.dtype}, for {self.dtype} slots")
        columns = self._columns.get(layout)
        if columns is None:
            check_packed(packed.header, self._fit, subject)
            columns = self._columns[layout] = self._lay_columns(layout)
        return columns

    def _lay_columns(self, layout: Layout) -> _Columns:
        modules = np.array([self.index[place.path] for place in layout.places], dtype=np.int64)
        ranks = np.zeros(len(self.shapes), dtype=np.int32)
        ranks[modules] = [place.rank for place in layout.places]
        own = layout if self._cuts is None else cut_layout(layout, self._cuts)
        return _Columns(own, modules, ranks, places={})

    def _places_from(self, start: int, columns: _Columns) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Places of a run that begins at element `start`: few starts occur, and a load must not wait for numpy."""
        places = columns.places.get(start)
        if places is None:
            places = np.full(len(self.shapes), ABSENT, dtype=np.int64)
            places[columns.modules] = [start + place.offset for place in columns.layout.places]
            columns.places[start] = places
        return places

    def _settle(self) -> None:
        """Wait until the device has the copies: a step may follow on another stream."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()


def _note_present(arrival: Arrival, begin: Callable[[int], None], start: int, nbytes: int) -> None:
    """A run that begins at an element of its row has come so far; the tables know of it before anybody reads it."""
    if not arrival.begun:
        begin(start)
    arrival.reach(nbytes)


def _shape(module: Module, cut: ModuleCut) -> tuple[int, int]:
    """A module's inputs and outputs, or what a rank holds of them."""
    return (cut.inputs or Cut(0, module.in_features)).size, (cut.outputs or Cut(0, module.out_features)).size

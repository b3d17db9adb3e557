"""The slots of an engine: each is one row of memory that holds one revision's packed weights.

The layout is that of `packed`: for each module that the adapter targets, A [r, in] followed by B transposed [r, out],
without gaps. Small tables give the offset of each module's part in each slot's row. So adapters of any ranks and
targets fit side by side without padding, and loading one means putting one run into place (see `slot_rows`).

Letters in shapes: S slots, M modules, W elements of a slot, P parts of one adapter, R the largest rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from math import gcd
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from mint_contracts.byte_counts import in_units
from mint_contracts.cuts import Cut
from mint_contracts.errors import ShapeMismatch
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit, check_packed
from mint_engine.adapters.cut import cut_layout, cut_packed
from mint_engine.adapters.packed import Layout, Packed
from mint_engine.model.device import claiming
from mint_engine.parallel.shares import ModuleCut
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.reading import read
from mint_engine.residency.retention import Retention, RetentionReport
from mint_engine.residency.slot_rows import SlotRows

NO_SLOT = -1  # the bare base
ABSENT = -1  # the offset of a module that an adapter does not target


@dataclass(frozen=True)
class _Columns:
    """What adapters of one layout write into a slot's column of the tables."""

    layout: Layout  # of the run in the row: this rank's share of the adapter, or all of it
    modules: np.ndarray[tuple[int], np.dtype[np.int64]]  # [P]
    ranks: np.ndarray[tuple[int], np.dtype[np.int32]]  # [M]
    places: dict[int, np.ndarray[tuple[int], np.dtype[np.int64]]]  # [M], keyed by the element at which the run begins


@dataclass(frozen=True)
class _Tables:
    """NumPy views of the tables of `Slots`, sharing their memory, so that a column is written with one call."""

    places: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
    ranks: np.ndarray[tuple[int, ...], np.dtype[np.int32]]
    scalings: np.ndarray[tuple[int, ...], np.dtype[np.float32]]


class Others(Protocol):
    """The engine's other ranks. Each context makes them do the same to their slot, and waits for them on exit."""

    def load(self, slot: int, packed: Packed) -> AbstractContextManager[None]:
        """Load the slot. Raises SourceUnavailable on exit if one of them failed; the slot must then be cleared."""
        ...

    def clear(self, slot: int) -> AbstractContextManager[None]:
        """Clear the slot. Raises EngineUnavailable if one of them has ended."""
        ...


class Alone:
    """An engine of one rank: there are no others."""

    def load(self, slot: int, packed: Packed) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()

    def clear(self, slot: int) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


class Slots:
    """The slots of one engine, or of one rank, if `cuts` give the part of each module that the rank holds.

    `load` and `clear` may run on any thread, but callers must use them only on a slot that no running request refers
    to. A step reads only the slots of its own requests, so it never sees half an adapter.
    The part of a row beyond its tenant is always zero.
    """

    def __init__(
        self, modules: Mapping[str, Module], count: int, max_rank: int, dtype: torch.dtype, device: torch.device,
        cuts: Mapping[str, ModuleCut] | None = None, others: Others | None = None,
    ) -> None:  # fmt: skip
        """Raises CapacityExceeded if the device does not have as much memory."""
        self.modules = dict(modules)
        self._cuts, self._others = cuts, others or Alone()
        self._fit = Fit(self.modules, max_rank)
        self._columns: WeakKeyDictionary[Layout, _Columns] = WeakKeyDictionary()
        self.count = count
        self.max_rank = max_rank
        self.dtype = dtype
        self.device = device
        self.index = {path: at for at, path in enumerate(self.modules)}
        self.shapes, self.experts = _held(self.modules, cuts)
        self._widest = max_rank * _elements(self.shapes, self.experts)
        # Elements at whose multiples every part of a run begins, and every row of its weights.
        self.alignment = gcd(*(size for shape in self.shapes for size in shape), 8)
        size = f"of {count} with maxRank {max_rank} needs {in_units(self.bytes)}, which"
        with claiming("deviceSlots", size, lower="one of the two"):
            self._rows = SlotRows(count, self._widest, dtype, device)
        self.memory = self._rows.memory  # [S, W]
        # The tables are always in host memory, where steps are planned.
        self.places = torch.full((len(self.shapes), count), ABSENT, dtype=torch.int64)  # [M, S], in elements
        self.ranks = torch.zeros((len(self.shapes), count), dtype=torch.int32)  # [M, S]
        self.scalings = torch.zeros((len(self.shapes), count), dtype=torch.float32)  # [M, S]
        self._tables = _Tables(self.places.numpy(), self.ranks.numpy(), self.scalings.numpy())
        self.filled = self._rows.filled  # elements of each row, up to the end of its tenant
        # On a GPU: copies run beside the steps' kernels, one after another.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # On a GPU: the tables once more, for kernels, [S, M, 3] int64: place, rank, and the scaling's bits (float32).
        self.parts = torch.zeros(
            (count if self._stream else 0, len(self.shapes), 3), dtype=torch.int64, device=device
        )

    @property
    def bytes(self) -> int:
        """Capacity of all slots together, in bytes of device memory."""
        return self.count * self._widest * self.dtype.itemsize

    def part(self, module: int, slot: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return a module's A [r, in] and B transposed [r, out] in a slot, as views; None if its tenant has neither.

        For a module of E stacked experts they have E * r rows, expert by expert.
        """
        place, rank = int(self.places[module, slot]), int(self.ranks[module, slot]) * self.experts[module]
        if place == ABSENT:
            return None
        wide, high = self.shapes[module]
        row, middle = self.memory[slot], place + rank * wide
        return row[place:middle].view(rank, wide), row[middle : middle + rank * high].view(rank, high)

    def ends(self, slot: int) -> list[int]:
        """Return the byte of a slot's row at which each module's part ends [M]; 0 for a module without a part."""
        places, ranks = self._tables.places[:, slot].tolist(), self._tables.ranks[:, slot].tolist()
        parts = zip(places, ranks, self.experts, self.shapes, strict=True)
        return [
            0 if place == ABSENT else (place + rank * many * sum(shape)) * self.dtype.itemsize
            for place, rank, many, shape in parts
        ]

    def load(self, slot: int, packed: Packed, *, keep: bool = True, arrival: Arrival | None = None) -> None:
        """Load one revision into `slot`, replacing its tenant.

        With `keep=False` the caller does not read the run afterwards, and its memory may become the slot's. An
        `arrival` is updated as the row is read; until it ends, only it says how much may be read. Raises
        UnknownTargetModules, RankTooLarge or ShapeMismatch before anything is changed. Raises LostBlock if the file
        cannot be read, and the errors of `Others`; the slot must then be cleared.
        """
        columns = self._columns_of(packed)
        scalings = np.zeros(len(self.shapes), dtype=np.float32)
        scalings[columns.modules] = packed.header.scalings
        if self._cuts is not None:  # a rank that copies only its own parts may not notice a block that another lacks
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
        with self._beside():
            start = self._rows.load(slot, own, keep=keep, on_present=on_present)
            begin(start)
            self.copy_tables(slot)

    def clear(self, slot: int) -> None:
        """Remove the slot's tenant and zero its weights."""
        with self._others.clear(slot):
            self._forget(slot)
            with self._beside():
                self._rows.clear(slot)

    @property
    def retention(self) -> Retention:
        """How the weights in slots are kept in memory."""
        return self._rows.retention

    def retain(self) -> RetentionReport:
        """Lock the weights in memory, or bring back what was evicted; any thread may call this at any time."""
        return self._rows.retain()

    def is_empty(self, slot: int) -> bool:
        """Return whether a slot has no tenant, according to its tables."""
        return self.filled[slot] == 0 and bool((self._tables.places[:, slot] == ABSENT).all())

    def copy_tables(self, slot: int) -> None:
        """Copy a slot's tables to the GPU, if there is one. Steps read only those of slots that they use."""
        if self._stream is not None:
            tables = self._tables
            columns = tables.places[:, slot], tables.ranks[:, slot], tables.scalings[:, slot].view(np.int32)
            column = torch.from_numpy(np.stack(columns, axis=1)).pin_memory()  # int64, as the places are
            self.parts[slot].copy_(column, non_blocking=True)

    def _forget(self, slot: int) -> None:
        self._tables.places[:, slot] = ABSENT
        self._tables.ranks[:, slot] = 0
        self._tables.scalings[:, slot] = 0.0

    def _columns_of(self, packed: Packed) -> _Columns:
        """Return the table entries of an adapter's layout, checked and computed once per layout."""
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
        """Return the places of a run that begins at element `start`; cached, since a load must not wait for numpy."""
        places = columns.places.get(start)
        if places is None:
            places = np.full(len(self.shapes), ABSENT, dtype=np.int64)
            places[columns.modules] = [start + place.offset for place in columns.layout.places]
            columns.places[start] = places
        return places

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Copy on a stream of their own what is copied within; it is on the device at the end.

        No step waits for it. It waits for what was launched before, which may still write what is copied.
        """
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            self._stream.synchronize()


def _note_present(arrival: Arrival, begin: Callable[[int], None], start: int, nbytes: int) -> None:
    """Record how much of a run has arrived; on the first call write the tables, before anybody reads the row."""
    if not arrival.begun:
        begin(start)
    arrival.reach(nbytes)


def slots_bytes(
    modules: Mapping[str, Module],
    count: int,
    max_rank: int,
    dtype: torch.dtype,
    cuts: Mapping[str, ModuleCut] | None,
) -> int:
    """Return the bytes that `Slots` of these arguments take on their device."""
    return count * max_rank * _elements(*_held(modules, cuts)) * dtype.itemsize


def _held(
    modules: Mapping[str, Module], cuts: Mapping[str, ModuleCut] | None
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return each module's inputs and outputs, and its number of experts or 1; or the rank's share of them."""
    held = [(module, (cuts or {}).get(path, ModuleCut())) for path, module in modules.items()]
    experts = [cut.experts.size if cut.experts else max(module.experts, 1) for module, cut in held]
    return [_shape(module, cut) for module, cut in held], experts


def _elements(shapes: Sequence[tuple[int, int]], experts: Sequence[int]) -> int:
    """Return the elements of an adapter of rank 1 on all modules."""
    return sum(many * sum(shape) for many, shape in zip(experts, shapes, strict=True))


def _shape(module: Module, cut: ModuleCut) -> tuple[int, int]:
    """Return the inputs and outputs of a module, or the rank's share of them."""
    return (cut.inputs or Cut(0, module.in_features)).size, (cut.outputs or Cut(0, module.out_features)).size

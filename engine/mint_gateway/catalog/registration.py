"""Registering: lines become entries, entries become manifest parts, and each durable part is applied to Redis."""

import asyncio
from collections.abc import Iterable, Sequence

import msgspec

from mint_contracts.awaiting import end_tasks
from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry, check, plainly_good, read_line, read_lines
from mint_contracts.errors import CapacityExceeded, MintError
from mint_contracts.part_names import part_name
from mint_gateway.catalog.writable import ANYTHING, Writable
from mint_gateway.time_slices import TimeSlices

PART_ENTRIES = 10_000
PARTS_AT_ONCE = 4  # written concurrently while the next is filled: one waits for the disk, another uses Redis
SLICE_BYTES = 64 << 10  # parsed without yielding: about two milliseconds
REFUSALS_LISTED = 1000
FORGET_RETIRED_S = 3600.0  # far longer than writing a part takes

_US = 1_000_000


class Refusal(msgspec.Struct, frozen=True):
    """A line that was not registered, and why."""

    line: int  # from 1
    error: MintError


class Registration:
    """One stream of entries. `finish` returns when all that were not refused are durable and visible.

    If the base is `stored` (also has an adapter store), Redis keeps retired names, to tell them from names that only
    the store knows. An entry that is not `writable` ends the stream with PermissionDenied.
    """

    def __init__(
        self, base: str, parts: Parts, writer: CatalogWriter, *, stored: bool, writable: Writable = ANYTHING
    ) -> None:
        self.base, self._parts, self._writer, self._stored, self._writable = base, parts, writer, stored, writable
        self._entries: list[Entry] = []
        self._writing: list[asyncio.Task[None]] = []
        self._line = 0
        self.registered = self.refused = self.parts = 0
        self.refusals: list[Refusal] = []  # the first ones

    async def add_lines(self, text: bytes) -> None:
        """Add complete lines of JSON."""
        for piece in _slices(text):
            self._read(piece)
            await self._write_full_parts()
            await asyncio.sleep(0)

    async def add(self, entries: Iterable[Entry]) -> None:
        """Add entries; each counts as a line."""
        slices = TimeSlices()
        for entry in entries:
            self._line += 1
            try:
                self._entries.append(check(entry))
            except MintError as error:
                self._refuse(self._line, error)
            await self._write_full_parts()
            await slices.rest()

    async def finish(self) -> None:
        """Write what is left and wait until all of it is durable and visible."""
        if self._entries:
            await self._write(self._entries)
            self._entries = []
        while self._writing:
            await self._writing.pop(0)

    async def abandon(self) -> None:
        """Cancel the writes in progress; their entries may or may not become visible."""
        await end_tasks(self._writing)

    def _read(self, text: bytes) -> None:
        """Parse lines: all at once if all are good, else one by one."""
        try:
            entries = read_lines(text)
            if not plainly_good(entries):
                for entry in entries:
                    check(entry)
        except (msgspec.MsgspecError, UnicodeDecodeError, MintError):
            self._read_one_by_one(text)
        else:
            self._entries += entries
            self._line += text.count(b"\n") + (not text.endswith(b"\n"))

    def _read_one_by_one(self, text: bytes) -> None:
        for line in text.removesuffix(b"\n").split(b"\n"):
            self._line += 1
            if not line.strip():
                continue
            try:
                self._entries.append(read_line(line))
            except MintError as error:
                self._refuse(self._line, error)

    def _refuse(self, line: int, error: MintError) -> None:
        self.refused += 1
        if len(self.refusals) < REFUSALS_LISTED:
            self.refusals.append(Refusal(line, error))

    async def _write_full_parts(self) -> None:
        while len(self._entries) >= PART_ENTRIES:
            part, self._entries = self._entries[:PART_ENTRIES], self._entries[PART_ENTRIES:]
            await self._write(part)

    async def _write(self, entries: list[Entry]) -> None:
        # Checked here, where all entries pass; in a thread, since it checks each entry by itself.
        await asyncio.to_thread(self._writable.check, entries)
        while len(self._writing) >= PARTS_AT_ONCE:
            await self._writing.pop(0)
        retiring = all(entry.retired for entry in entries)
        # Reserved here, not in the task, so that sequences follow the order of the stream.
        first = await self._writer.sequences(self.base, len(entries), retiring=retiring, manifests=self._parts.uri)
        self._writing.append(asyncio.create_task(self._write_part(first, entries)))

    async def _write_part(self, first: int, entries: list[Entry]) -> None:
        name = part_name(first, len(entries))
        horizon = 0 if self._stored else first - int(FORGET_RETIRED_S * _US)
        await self._parts.write(name, entries)
        rows = list(enumerate(entries, first))
        try:
            await self._writer.apply(self.base, rows, name, horizon=horizon, manifests=self._parts.uri)
        except CapacityExceeded:
            if not all(entry.retired for entry in entries):
                raise
            await self._writer.retire(self.base, rows, manifests=self._parts.uri)
        self.registered += len(entries)
        self.parts += 1


def _slices(text: bytes) -> Sequence[bytes]:
    """Split text into slices of complete lines, about SLICE_BYTES each."""
    found, at = [], 0
    while at < len(text):
        end = text.find(b"\n", at + SLICE_BYTES)
        end = len(text) if end < 0 else end + 1
        found.append(text[at:end])
        at = end
    return found

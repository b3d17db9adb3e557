"""Whatever is registered, retired, merged, interrupted and reread, the catalog equals a plain dictionary."""

import asyncio
import itertools
import tempfile
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.entries import Entry, Row
from mint_contracts.errors import MintError
from mint_contracts.part_names import part_name, spans
from mint_contracts.source import Source
from mint_gateway.catalog import merging
from mint_gateway.catalog.compaction import below
from mint_gateway.catalog.keeper import Keeper
from mint_gateway.catalog.merging import RangeChanged, kept, merge

BASE = "demo/smollm2"
NAMES, REVISIONS = ["a", "b"], [f"r{number}" for number in range(1, 12)]
KNOWN = 9  # revisions kept of a name, including the newest


class Plain:
    """The catalog as a dictionary from each name to its revisions, newest first; empty if it is retired."""

    def __init__(self) -> None:
        self.names: dict[str, list[Entry]] = {}

    def take(self, entry: Entry) -> None:
        known = [each for each in self.names.get(entry.name, []) if each.revision != entry.revision]
        self.names[entry.name] = [] if entry.retired else [entry, *known][:KNOWN]

    @property
    def live(self) -> int:
        return sum(map(len, self.names.values()))

    @property
    def retired(self) -> list[str]:
        return [name for name, revisions in self.names.items() if not revisions]


class Cut(Exception):
    """The gateway is killed here."""


class CutOff(Parts):
    """The parts of a gateway that is killed after `writes` writes; only some of its deletions take effect."""

    def __init__(self, manifests: Source, writes: int, removals: int) -> None:
        super().__init__(manifests)
        self._writes, self._removals = writes, removals

    async def write_merged(self, name: str, rows: Sequence[Row]) -> None:
        if self._writes == 0:
            raise Cut
        self._writes -= 1
        await super().write_merged(name, rows)

    async def delete(self, name: str) -> None:
        self._removals, lasts = divmod(self._removals, 2)
        if lasts:
            await super().delete(name)


Window = tuple[int, int]  # its start, and its length, among the existing spans
WINDOWS = st.tuples(st.integers(0, 3), st.integers(2, 6))


class Merge(msgspec.Struct, frozen=True):
    """A merge that is cut off after `writes` writes; each bit of `removals` says whether a deletion takes effect."""

    window: Window
    writes: int
    removals: int


Step = list[Entry] | Merge | tuple[Window, Window]
ENTRIES = st.builds(
    lambda name, number: (
        Entry(name, f"s3://x/{name}/{number}", f"r{number}") if number else Entry(name, retired=True)
    ),
    st.sampled_from(NAMES),
    st.integers(0, 11),
)
PARTS = st.lists(ENTRIES, min_size=1, max_size=12)
STEPS = st.one_of(
    PARTS,
    PARTS,
    st.builds(Merge, WINDOWS, st.integers(0, 2), st.integers(0, 255)),
    st.tuples(WINDOWS, WINDOWS),  # two gateways that both believe they hold the lock
)


async def merged(parts: Parts, window: Window, *, stored: bool) -> None:
    """Merge these neighbours, as a keeper does."""
    counted = spans(await parts.names())
    begin, end = window[0], window[0] + window[1]
    chosen = counted[begin:end]
    if len(chosen) < 2:
        return
    await merge(parts, chosen, below(counted, begin, end, 1 << 63), stored=stored, go_on=lambda: asyncio.sleep(0))


@given(st.lists(PARTS, min_size=2, max_size=6), st.lists(STEPS, max_size=12), st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_history_is_what_a_dictionary_makes_of_it(
    redis_client: Redis, begun: list[list[Entry]], steps: list[Step], stored: bool
) -> None:
    plain, sequence = Plain(), 10
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "PIECE", 2)
        manifests = Source(f"file://{folder}")
        for step in [*begun, *steps]:
            if isinstance(step, list):
                await Parts(manifests).write(part_name(sequence, len(step)), step)
                sequence += len(step) + 5
                for entry in step:
                    plain.take(entry)
            elif isinstance(step, Merge):
                with suppress(Cut):
                    await merged(CutOff(manifests, step.writes, step.removals), step.window, stored=stored)
            else:
                both = [merged(Parts(manifests), each, stored=stored) for each in step]
                for failure in await asyncio.gather(*both, return_exceptions=True):
                    assert failure is None or isinstance(failure, MintError | RangeChanged), (
                        failure
                    )  # the other gateway had done it
        await is_what_it_says(redis_client, manifests, plain, stored=stored)
        await merged(Parts(manifests), (0, 10**6), stored=stored)
        await is_what_it_says(redis_client, manifests, plain, stored=stored)
        counted = spans(await Parts(manifests).names())
        if counted and counted[0].run:
            assert [span.rows for span in counted] == [plain.live + (len(plain.retired) if stored else 0)]


@given(st.lists(ENTRIES.map(lambda entry: msgspec.structs.replace(entry, name="a")), max_size=30), st.integers(0, 30))
def test_a_compacted_history_means_the_same_wherever_it_was_cut(entries: list[Entry], at: int) -> None:
    rows = list(enumerate(entries, 1))
    older, newer = kept(rows[:at], 1 << 63, stored=True), kept(rows[at:], 0, stored=True)
    whole = kept(rows, 1 << 63, stored=True)
    assert kept([*older, *newer], 1 << 63, stored=True) == whole
    assert kept(whole, 1 << 63, stored=True) == whole


async def is_what_it_says(redis: Redis, manifests: Source, plain: Plain, *, stored: bool) -> None:
    await redis.flushall()
    await Keeper(redis, dict).rebuild(BASE, manifests)
    reader = CatalogReader(redis)
    live = {name: revisions for name, revisions in plain.names.items() if revisions}
    assert await reader.all(BASE, limit=99) == [live[name][0] for name in sorted(live)]
    for name, revision in itertools.product(NAMES, REVISIONS):
        found = await reader.find(BASE, name, revision)
        if name in plain.retired:
            assert found == Entry(name, retired=True) if stored else found is None or found.retired
        else:
            assert found == next((each for each in live.get(name, []) if each.revision == revision), None)
    state = await reader.state(BASE)
    assert (state.count, state.count + state.older) == (len(live), plain.live)
    assert state.retired == len(plain.retired) or not stored

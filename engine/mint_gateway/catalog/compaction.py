"""Compaction: many small parts of a catalog's manifests become few large ones, so that reading it anew stays quick.

Nothing that was acknowledged is ever lost: a merged part is whole and durable before what it was made from is
deleted, and reading both is reading it once. So a compaction that is cut off, or done by two gateways, does no harm;
who reads the catalog meanwhile, and finds a part gone, begins again.
"""

from collections.abc import Sequence

import structlog

from mint_contracts.catalog_parts import Parts, count_of, merged_name, sequence_of
from mint_contracts.entries import Row
from mint_contracts.errors import CorruptFile

SMALL = 5_000  # entries; a part of so many stays as it is
ENOUGH = 64  # small parts are worth the work
MERGED_ENTRIES = 50_000  # in one part at most: some 50 MB while it is made

_log = structlog.get_logger()


def chosen(names: Sequence[str], floor: int) -> list[list[str]]:
    """Which parts to merge with each other, the oldest first: small ones up to the sequence `floor`, all in Redis.

    None where they are few. Parts whose names do not tell their count stay as they are.
    """
    small = [
        (name, count)
        for name in names
        if (count := count_of(name)) is not None and count < SMALL and (sequence_of(name) or 0) <= floor
    ]
    if len(small) < ENOUGH:
        return []
    groups: list[list[str]] = [[]]
    held = 0
    for name, count in small:
        if held + count > MERGED_ENTRIES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += count
    return [group for group in groups if len(group) > 1]


async def compact(parts: Parts, names: Sequence[str], floor: int) -> int:
    """Merge what is `chosen`; returns how many parts are gone."""
    gone = 0
    for group in chosen(names, floor):
        gone += await _merge(parts, group)
    return gone


async def _merge(parts: Parts, group: Sequence[str]) -> int:
    rows: dict[tuple[int, str], Row] = {}
    merged = []
    for name in group:
        try:
            read = await parts.read(name, strict=True)
        except CorruptFile as error:  # what cannot be read now may be mended by hand, and must not vanish
            _log.warning("catalog part is left as it is", part=name, error=str(error))
            continue
        rows |= {(sequence, entry.name): (sequence, entry) for sequence, entry in read}
        merged.append(name)
    if len(merged) < 2:
        return 0
    ordered = sorted(rows.values(), key=lambda row: row[0])
    await parts.write_merged(merged_name(ordered[0][0], len(ordered)), ordered)
    for name in merged:
        await parts.delete(name)
    _log.info("catalog parts merged", parts=len(merged), entries=len(ordered))
    return len(merged)

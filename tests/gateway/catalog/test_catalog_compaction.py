"""A catalog's manifests are merged as they grow, and its content stays the same whatever happens meanwhile."""

import itertools
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from mint_contracts import catalog_parts, keys
from mint_contracts.catalog_parts import Parts
from mint_contracts.catalog_reader import CatalogReader
from mint_contracts.entries import Entry
from mint_contracts.errors import MapUnavailable, SourceUnavailable
from mint_contracts.part_names import is_merged, part_name, piece_name, spans
from mint_contracts.source import Source
from mint_gateway.catalog import compaction, merging
from mint_gateway.catalog.compaction import ENOUGH, GROWN
from mint_gateway.catalog.keeper import Keeper
from tests.apiserver import ROOT
from tests.gateway.manifests import BASE, entry, read_anew, swept, written


@pytest.fixture
def manifests(tmp_path: Path) -> Source:
    return Source(f"file://{tmp_path}/catalog")


async def test_a_folder_that_loses_parts_between_all_listings_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_parts, "READ_TIMEOUT_S", 0.05)
    parts, number = Parts(Source(f"file://{tmp_path}")), itertools.count(1)
    monkeypatch.setattr(parts, "_store", SimpleNamespace(names=lambda: [part_name(next(number), 1)]))
    with pytest.raises(SourceUnavailable, match="loses files between any two listings"):
        await parts.names()


async def saved(redis: Redis) -> dict[Any, bytes]:
    """Return everything in Redis."""
    return {key: await redis.dump(key) or b"" for key in await redis.keys("*")}


async def come_back(redis: Redis, state: dict[Any, bytes]) -> None:
    """Restore Redis to an earlier state."""
    await redis.flushall()
    for key, value in state.items():
        await redis.restore(key, 0, value)


def rows(names: list[str]) -> list[int]:
    return [span.rows for span in spans(names)]


KEPT = 100 + 1 + 8  # names of their own, and the shared one's newest revisions


async def test_many_small_parts_become_one_that_says_the_same(redis_client: Redis, manifests: Source) -> None:
    await written(manifests, 100)
    before = await read_anew(redis_client, manifests)
    names = await swept(redis_client, manifests)
    assert (len(names), rows(names)) == (1, [KEPT])
    assert await read_anew(redis_client, manifests) == before
    assert len(before) > 100


async def test_newer_parts_are_merged_by_themselves_where_that_costs_less(
    redis_client: Redis, manifests: Source
) -> None:
    await written(manifests, 100)
    await read_anew(redis_client, manifests)
    await swept(redis_client, manifests)
    await written(manifests, 99, first=101)
    before = await read_anew(redis_client, manifests)
    # The retirement is kept, since it decides whether the older run's revisions of the name still count.
    assert rows(await swept(redis_client, manifests)) == [KEPT, 99 + 1 + 9]
    assert await read_anew(redis_client, manifests) == before


async def test_few_parts_stay_as_they_are(redis_client: Redis, manifests: Source) -> None:
    names = await written(manifests, ENOUGH - 1)
    await read_anew(redis_client, manifests)
    assert await swept(redis_client, manifests) == names


async def test_names_registered_anew_each_night_take_no_more_to_read(
    redis_client: Redis, manifests: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "SLACK", 0)
    monkeypatch.setattr(compaction, "HELD", 500)
    monkeypatch.setattr(merging, "PIECE", 50)
    parts, names = Parts(manifests), [f"a/bot-{number:03d}" for number in range(400)]
    for night in range(8):
        for at in range(0, 400, 100):
            entries = [entry(name, "r1") for name in names[at : at + 100]]
            await parts.write(part_name(1000 * night + at, 100), entries)
        await Keeper(redis_client, dict).look(BASE, manifests)
        await Keeper(redis_client, dict).sweep(BASE, manifests, young=True)
        assert sum(rows(await parts.names())) <= GROWN * 400
    pieces = [await parts.read(name) for name in await parts.names() if is_merged(name)]
    assert 0 < max(map(len, pieces), default=0) <= 50
    await redis_client.flushall()
    assert await Keeper(redis_client, dict).rebuild(BASE, manifests) <= GROWN * 400
    assert (await CatalogReader(redis_client).state(BASE)).count == 400


@pytest.mark.parametrize("stored", [True, False])
async def test_a_retired_name_takes_one_row_where_a_store_may_have_it_and_none_elsewhere(
    redis_client: Redis, manifests: Source, monkeypatch: pytest.MonkeyPatch, *, stored: bool
) -> None:
    monkeypatch.setattr(compaction, "SLACK", 0)
    parts, gone = Parts(manifests), Entry("a/gone", retired=True)
    for number in range(1, 40, 2):
        await parts.write(part_name(number * 10, 2), [entry("a/here", "r1"), entry("a/gone", f"r{number}")])
        await parts.write(part_name(number * 10 + 10, 1), [gone])
    await read_anew(redis_client, manifests)
    assert rows(await swept(redis_client, manifests, stored=stored)) == [2 if stored else 1]
    await read_anew(redis_client, manifests)
    assert await CatalogReader(redis_client).find(BASE, "a/gone") == (gone if stored else None)


async def test_a_compaction_that_ended_before_it_had_deleted_is_gone_on_with(
    redis_client: Redis, manifests: Source, tmp_path: Path
) -> None:
    names = await written(manifests, 100)
    kept = {name: (tmp_path / "catalog" / name).read_bytes() for name in names}
    before = await read_anew(redis_client, manifests)
    merged = await swept(redis_client, manifests)
    for name in names[30:]:  # as if it had deleted only the first 30
        (tmp_path / "catalog" / name).write_bytes(kept[name])
    assert await read_anew(redis_client, manifests) == before
    assert await swept(redis_client, manifests) == merged
    assert await read_anew(redis_client, manifests) == before


async def test_a_part_with_a_line_that_cannot_be_read_is_left_for_a_person(
    redis_client: Redis, manifests: Source, tmp_path: Path
) -> None:
    names = await written(manifests, 100)
    torn = tmp_path / "catalog" / names[7]
    torn.write_bytes(torn.read_bytes() + b"{torn\n")
    before = await read_anew(redis_client, manifests)
    after = await swept(redis_client, manifests)
    assert (after[:8], len(after)) == (names[:8], 9), "what comes after it is merged"
    assert torn.read_bytes().endswith(b"{torn\n")
    assert await read_anew(redis_client, manifests) == before


@pytest.mark.parametrize("left", [0, 1])
async def test_a_part_that_lacks_lines_is_left_for_a_person(
    redis_client: Redis, manifests: Source, tmp_path: Path, left: int
) -> None:
    names = await written(manifests, 100)
    cut = tmp_path / "catalog" / names[7]
    cut.write_bytes(b"".join(cut.read_bytes().splitlines(keepends=True)[:left]))
    with capture_logs() as logged:
        before = await read_anew(redis_client, manifests)
    [line] = [line for line in logged if "does not have as many entries as its name says" in line["event"]]
    assert (line["part"], line["entries"], line["told"]) == (names[7], left, 2)
    after = await swept(redis_client, manifests)
    assert (after[:8], len(after)) == (names[:8], 9), "what comes after it is merged"
    assert await read_anew(redis_client, manifests) == before


async def test_a_run_that_lacks_pieces_costs_only_the_names_in_them_and_is_left_for_a_person(
    redis_client: Redis, manifests: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "PIECE", 10)
    await written(manifests, 100)
    before = await read_anew(redis_client, manifests)
    pieces = await swept(redis_client, manifests)
    lost = tmp_path / "catalog" / pieces[3]
    content = lost.read_bytes()
    lost.unlink()
    with capture_logs() as logged:
        assert len(await read_anew(redis_client, manifests)) == len(before) - len(content.splitlines())
    assert [line["base_model"] for line in logged if "lacks pieces; put them back and" in line["event"]] == [BASE]
    await written(manifests, 99, first=101)
    await read_anew(redis_client, manifests)
    after = await swept(redis_client, manifests)
    assert after[:9] == [*pieces[:3], *pieces[4:10]]
    assert len(after) < 99, "what comes after it is merged"
    rest = (await CatalogReader(redis_client).state(BASE)).count
    lost.write_bytes(content)
    with capture_logs() as logged:
        await swept(redis_client, manifests)
    assert not [line for line in logged if "lacks pieces" in line["event"]]
    assert (await CatalogReader(redis_client).state(BASE)).count == rest, "old files are not looked at again"
    assert await count_read_again(redis_client, manifests) == 100 + 99 + 1


async def count_read_again(redis: Redis, manifests: Source) -> int:
    """Have the catalog read again as docs/platform.md says, and return its number of names."""
    [command] = re.findall(r"^ {4}redis-cli (HDEL .*)$", (ROOT / "docs" / "platform.md").read_text(), re.MULTILINE)
    await redis.execute_command(*shlex.split(command.replace("NAMESPACE/NAME OF THE BASEMODEL", BASE)))  # type: ignore[no-untyped-call]
    await Keeper(redis, dict).look(BASE, manifests)
    return (await CatalogReader(redis).state(BASE)).count


async def test_parts_that_may_still_be_on_their_way_are_left_alone(redis_client: Redis, manifests: Source) -> None:
    await written(manifests, 100)
    young = part_name(10**16 - 1, 1)
    await Parts(manifests).write(young, [entry("a/young", "r1")])
    await read_anew(redis_client, manifests)
    assert young in await swept(redis_client, manifests)
    assert await redis_client.hget(keys.catalog(BASE), "count") == "102"


async def test_a_redis_that_came_back_older_than_a_run_gets_what_it_has_missed(
    redis_client: Redis, manifests: Source
) -> None:
    await written(manifests, 50)
    await read_anew(redis_client, manifests)
    state = await saved(redis_client)
    await written(manifests, 50, first=51)
    await swept(redis_client, manifests)
    assert len(await swept(redis_client, manifests)) == 1
    await come_back(redis_client, state)
    await swept(redis_client, manifests)
    assert (await CatalogReader(redis_client).state(BASE)).count == 101


async def test_a_redis_that_came_back_is_told_what_was_retired_before_a_merge(
    redis_client: Redis, manifests: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "SLACK", 0)
    parts, gone, lately = Parts(manifests), Entry("a/gone", retired=True), time.time_ns() // 1000 - 600 * 10**6
    await parts.write(part_name(lately, 2), [entry("a/here", "r1"), entry("a/gone", "r1")])
    await read_anew(redis_client, manifests)
    state = await saved(redis_client)
    await parts.write(part_name(lately + 10, 1), [gone])
    assert rows(await swept(redis_client, manifests, stored=False)) == [2]
    await come_back(redis_client, state)
    await swept(redis_client, manifests, stored=False)
    assert await CatalogReader(redis_client).find(BASE, "a/gone") == gone


async def test_a_part_of_an_earlier_version_that_is_left_beside_its_run_brings_nothing_back(
    redis_client: Redis, manifests: Source, tmp_path: Path
) -> None:
    parts, old = Parts(manifests), f"{10:016d}-abcdef01-1.merged.jsonl"
    await parts.write_merged(old, [(10, entry("a/gone", "r1"))])
    await parts.write(part_name(1000, 1), [Entry("a/gone", retired=True)])
    await written(manifests, 100, first=101)
    content = (tmp_path / "catalog" / old).read_bytes()
    before = await read_anew(redis_client, manifests)
    assert len(await swept(redis_client, manifests, stored=False)) == 1
    (tmp_path / "catalog" / old).write_bytes(content)
    assert await read_anew(redis_client, manifests) == before


async def test_a_merge_gives_up_where_a_part_has_come_into_its_range(
    redis_client: Redis, manifests: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "PIECE", 10)
    names, write, late = await written(manifests, 100), Parts.write_merged, part_name(505, 1)
    await read_anew(redis_client, manifests)

    async def meanwhile(parts: Parts, name: str, some: list[tuple[int, Entry]]) -> None:
        await write(parts, name, some)
        await parts.write(late, [entry("a/late", "r1")])

    with monkeypatch.context() as patch:
        patch.setattr(Parts, "write_merged", meanwhile)
        assert await swept(redis_client, manifests) == sorted([*names, late])
    await swept(redis_client, manifests)
    assert entry("a/late", "r1") in await read_anew(redis_client, manifests)


ONE, TWO, RUN = part_name(10, 2), part_name(20, 2), piece_name(10, 21, "aaaa", 0, 4, end=True)


async def listed(manifests: Source, *listings: list[str]) -> list[tuple[str, ...]]:
    """Return the files of each span of a folder that is listed like this."""
    left = iter(listings)

    class Torn(Parts):
        async def do(self, work: Callable[[], Any], limit_s: float = 0.0) -> Any:
            return next(left)

    return [span.names for span in spans(await Torn(manifests).names())]


async def test_a_listing_that_missed_a_run_and_what_it_replaced_is_made_again(manifests: Source) -> None:
    assert await listed(manifests, [ONE, TWO], [ONE], [ONE, RUN]) == [(RUN,)]  # the second began before the run


async def test_a_folder_whose_listings_are_slow_is_listed_more_than_twice(
    manifests: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single listing may take longer than all of them should."""
    monkeypatch.setattr(catalog_parts, "READ_TIMEOUT_S", 0.0)
    assert await listed(manifests, [ONE, TWO], [ONE], [TWO], [TWO, RUN]) == [(RUN,)]


async def test_parts_that_an_earlier_version_did_not_count_are_not_stale(
    redis_client: Redis, manifests: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "SLACK", 0)
    names = await written(manifests, 40)
    await read_anew(redis_client, manifests)
    tallied = await redis_client.hget(keys.catalog(BASE), "tallied")
    await redis_client.hdel(keys.catalog(BASE), "tallied")
    assert await swept(redis_client, manifests) == names
    await redis_client.hset(keys.catalog(BASE), "tallied", str(tallied))
    assert len(await swept(redis_client, manifests)) == 1


async def test_a_gateway_of_an_earlier_version_causes_no_second_import(
    redis_client: Redis, manifests: Source
) -> None:
    await written(manifests, 100)
    await read_anew(redis_client, manifests)
    await swept(redis_client, manifests)
    await redis_client.hset(keys.catalog(BASE), "settled", 10)  # where the newest part begins
    assert await Keeper(redis_client, dict).sweep(BASE, manifests) == []


async def test_a_merge_makes_way_for_a_catalog_that_redis_has_lost(
    redis_client: Redis, manifests: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "PIECE", 10)
    names, write = await written(manifests, 100), Parts.write_merged
    await read_anew(redis_client, manifests)

    async def lost(parts: Parts, name: str, some: list[tuple[int, Entry]]) -> None:
        await write(parts, name, some)
        await redis_client.hdel(keys.catalog(BASE), "complete")

    monkeypatch.setattr(Parts, "write_merged", lost)
    with pytest.raises(MapUnavailable):
        await swept(redis_client, manifests)
    assert await Parts(manifests).names() == names

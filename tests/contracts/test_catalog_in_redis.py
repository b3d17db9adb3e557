"""The catalog in Redis compared with plain dictionaries: newest states, pinned revisions, pages, and memory."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from mint_contracts import keys
from mint_contracts.catalog_reader import CatalogReader, CatalogState
from mint_contracts.catalog_writer import CatalogWriter
from mint_contracts.entries import Entry, Row
from mint_contracts.errors import CapacityExceeded, MapUnavailable
from mint_contracts.map_writer import MapWriter
from mint_contracts.records import BaseRecord, MapChange
from mint_contracts.source import Source
from tests.contracts.catalogs import chosen, entry, make_complete, newest
from tests.redis_process import full_memory
from tests.waiting import until

BASE = "demo/smollm2"


@pytest.fixture
async def writer(redis_client: Redis) -> CatalogWriter:
    """A writer of an empty but complete catalog."""
    writer = CatalogWriter(redis_client)
    await make_complete(writer, BASE)
    return writer


@pytest.fixture
def reader(redis_client: Redis) -> CatalogReader:
    return CatalogReader(redis_client)


def many(count: int) -> list[Entry]:
    tiers = ("gold", "silver", "free")
    return [entry(f"team-{n % 7}/bot-{n:05d}", f"r{n}", tier=tiers[n % 3]) for n in range(count)]


def rows(entries: list[Entry], first: int = 1) -> list[Row]:
    return list(enumerate(entries, first))


async def test_a_catalog_that_was_never_complete_is_unavailable_rather_than_empty(
    redis_client: Redis, reader: CatalogReader
) -> None:
    writer = CatalogWriter(redis_client)
    copy = await writer.begin(BASE, "s3://catalog/smol")
    await writer.apply(BASE, rows([entry("a/b")]), "p", copy=copy)
    asked = {"a/b": entry("a/b").source}
    for asking in (
        reader.find(BASE, "a/b"),
        reader.page(BASE, limit=1),
        reader.registered(BASE, asked),
        writer.sequences(BASE, 1),
    ):
        with pytest.raises(MapUnavailable, match="being read from its manifests"):
            await asking
    await writer.complete(BASE, copy, 1)
    assert await reader.find(BASE, "a/b") == entry("a/b")


async def test_many_names_are_found_together_as_each_alone(writer: CatalogWriter, reader: CatalogReader) -> None:
    states = [entry("a/b", "r1"), entry("a/b", "r2"), entry("a/c"), Entry("a/d", retired=True), *many(3000)]
    for at, state in enumerate(states[:4], 1):
        await writer.apply(BASE, [(at, state)], f"p{at}")
    await writer.apply(BASE, rows(states[4:], 5), "p")
    odd = [
        ("a/b", ""),
        ("a/b", "r1"),
        ("a/b", "r9"),
        ("a/c", ""),
        ("a/c", "r1"),
        ("a/d", ""),
        ("a/d", "r1"),
        ("x", ""),
    ]
    asked = [*odd, *[(each.name, "") for each in states[4:]], *odd]
    found = await reader.find_each(BASE, asked)
    assert found[: len(odd)] == [await reader.find(BASE, *each) for each in odd] == found[-len(odd) :]
    assert [each and (each.revision, each.retired) for each in found[: len(odd)]] == [
        *[("r2", False), ("r1", False), None, ("", False), None, ("", True), ("", True), None]
    ]
    assert found[len(odd) : -len(odd)] == states[4:]
    assert await reader.find_each(BASE, []) == []


async def test_a_copy_is_filled_and_completed_by_its_own_token_alone(
    writer: CatalogWriter, reader: CatalogReader
) -> None:
    earlier = await writer.begin(BASE, "s3://catalog/smol")
    copy = await writer.begin(BASE, "s3://catalog/smol")
    for lost in (earlier, "none"):
        with pytest.raises(MapUnavailable):
            await writer.apply(BASE, rows([entry("a/b")]), "p", copy=lost)
        with pytest.raises(MapUnavailable):
            await writer.complete(BASE, lost, 1)
    assert await reader.state(BASE) == CatalogState(0, 1, complete=False, manifests="s3://catalog/smol")
    await writer.complete(BASE, copy, 1)
    assert (await reader.state(BASE)).is_complete_copy_of(Source("s3://catalog/smol"))
    assert not (await reader.state(BASE)).is_complete_copy_of(Source("s3://catalog/other"))


@pytest.mark.parametrize("manifests", ["smol", "other"])
async def test_a_copy_takes_nothing_over(
    redis_client: Redis,
    writer: CatalogWriter,
    reader: CatalogReader,
    monkeypatch: pytest.MonkeyPatch,
    manifests: str,
) -> None:
    monkeypatch.setattr("mint_contracts.catalog_writer.LEAVES_PER_CALL", 3)  # makes it take several calls
    await writer.apply(BASE, rows(many(1000)), "p")
    copy = await writer.begin(BASE, f"s3://catalog/{manifests}")
    assert await redis_client.keys(f"{keys.catalog(BASE)}*") == [keys.catalog(BASE)]
    await writer.apply(BASE, rows([entry("a/b")]), "p", copy=copy)
    await writer.complete(BASE, copy, 1)
    assert await reader.all(BASE, limit=9) == [entry("a/b")]
    assert (await reader.state(BASE)).count == 1


async def test_it_tells_when_each_revision_was_registered(writer: CatalogWriter, reader: CatalogReader) -> None:
    second = 1_000_000
    states = [entry("a/b", "r1"), entry("a/b", "r2"), entry("a/c"), entry("a/d")]
    for at, state in enumerate(states, 1):
        await writer.apply(BASE, [(at * second, state)], f"p{at}")
    await writer.apply(BASE, [(9 * second, Entry("a/d", retired=True))], "retiring")
    older, newest, only, gone = (state.source for state in states)
    asked = {"a/b": newest, "a/b@r1": older, "a/c": only, "a/d": gone, "a/unknown": only}
    assert await reader.registered(BASE, asked) == {"a/b": 2, "a/b@r1": 1, "a/c": 3}
    assert await reader.registered(BASE, {"a/b": older}) == {"a/b": 1}, "a wave may hold the one before"
    assert await reader.registered(BASE, {"a/c": Source("s3://elsewhere/a/c")}) == {}


async def test_thousands_of_names_are_found_counted_and_listed(writer: CatalogWriter, reader: CatalogReader) -> None:
    everything = many(3000)
    shuffled = random.Random(1).sample(everything, len(everything))
    await writer.apply(BASE, rows(shuffled), "p")
    assert (await reader.state(BASE)).count == 3000
    assert await reader.find(BASE, "team-3/bot-00003") == everything[3]
    assert await reader.find(BASE, "team-3/bot-99999") is None
    states = {each.name: each for each in everything}
    assert await reader.all(BASE, limit=10_000) == chosen(states, "", {})
    assert await reader.all(BASE, prefix="team-4/", limit=10_000) == chosen(states, "team-4/", {})
    assert await reader.all(BASE, prefix="team-4/bot-0000", labels={"tier": "gold"}, limit=9) == chosen(
        states, "team-4/bot-0000", {"tier": "gold"}
    )
    assert len(await reader.all(BASE, limit=100)) == 101  # one beyond the limit says that there are more


async def test_leaves_stay_in_the_compact_encoding(redis_client: Redis, writer: CatalogWriter) -> None:
    await writer.apply(BASE, rows(many(2000)), "p")
    begins = await redis_client.zrange(keys.catalog(BASE, "directory"), 0, -1)
    assert len(begins) > 2000 / 64
    for begin in begins:
        assert await redis_client.object("encoding", keys.catalog_leaves(BASE) + str(begin)) == "listpack"


async def test_pages_are_whole_and_in_order_whatever_their_size(writer: CatalogWriter, reader: CatalogReader) -> None:
    everything = many(700)
    await writer.apply(BASE, rows(everything), "p")
    for size in (1, 7, 128, 699, 700, 1000):
        found, after = [], ""
        while True:
            page = await reader.page(BASE, prefix="team-1", after=after, limit=size)
            assert len(page.entries) <= size
            found += [each.name for each in page.entries]
            after = page.after
            if not after:
                break
        assert found == [each.name for each in chosen({e.name: e for e in everything}, "team-1", {})]


async def test_a_page_that_finds_little_ends_and_says_where_to_go_on(
    writer: CatalogWriter, reader: CatalogReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_contracts.catalog_reader.LEAVES_PER_PAGE", 16)
    everything = [*many(4000), entry("zebra/last", tier="rare")]
    await writer.apply(BASE, rows(everything), "p")
    first = await reader.page(BASE, labels={"tier": "rare"}, limit=10)
    assert first.entries == ()
    assert first.after
    assert await reader.all(BASE, labels={"tier": "rare"}, limit=10) == [everything[-1]]
    assert await reader.all(BASE, limit=10_000) == chosen({e.name: e for e in everything}, "", {})


async def test_the_newest_is_what_a_name_means_and_older_ones_are_asked_for(
    writer: CatalogWriter, reader: CatalogReader
) -> None:
    states = [entry("a/b", f"r{number}") for number in range(12)]
    await writer.apply(BASE, rows(states), "p")
    assert await reader.find(BASE, "a/b") == states[11]
    assert await reader.find(BASE, "a/b", "r11") == states[11]
    assert await reader.find(BASE, "a/b", "r3") == states[3]
    assert await reader.find(BASE, "a/b", "r2") is None  # eight older ones are kept
    assert await reader.find(BASE, "a/b", "nope") is None
    assert await reader.all(BASE, limit=9) == [states[11]]
    assert (await reader.state(BASE)).count == 1


async def test_going_back_to_an_older_revision_makes_it_the_newest(
    writer: CatalogWriter, reader: CatalogReader
) -> None:
    one, two = entry("a/b", "r1"), entry("a/b", "r2")
    await writer.apply(BASE, rows([one, two, one]), "p")
    assert await reader.find(BASE, "a/b") == one
    assert await reader.find(BASE, "a/b", "r2") == two


async def test_a_retired_name_means_nothing_until_it_is_registered_again(
    writer: CatalogWriter, reader: CatalogReader
) -> None:
    one, two = entry("a/b", "r1"), entry("a/b", "r2")
    await writer.apply(BASE, [(1, one), (2, two), (5, Entry("a/b", retired=True))], "p")
    for revision in ("", "r1", "r2", "r9"):
        assert await reader.find(BASE, "a/b", revision) == Entry("a/b", retired=True)
    assert await reader.find(BASE, "a/c") is None
    assert (await reader.state(BASE)).count == 0
    await writer.apply(BASE, [(4, two)], "late")  # a write delayed since before the name was retired
    assert await reader.find(BASE, "a/b") == Entry("a/b", retired=True)
    assert await reader.all(BASE, limit=9) == []
    await writer.apply(BASE, [(6, two)], "again")
    assert await reader.find(BASE, "a/b") == two
    assert await reader.find(BASE, "a/b", "r1") is None


async def test_a_retirement_that_comes_late_takes_the_revisions_before_it(
    writer: CatalogWriter, reader: CatalogReader
) -> None:
    everything = rows([entry("a/b", "r1"), entry("a/b", "r2"), Entry("a/b", retired=True), entry("a/b", "r3"),
                       entry("a/b", "r4")])  # fmt: skip
    retirement = everything.pop(2)
    await writer.apply(BASE, everything, "p")
    await writer.apply(BASE, [retirement], "q")
    found = [await reader.find(BASE, "a/b", revision) for revision in ("", "r1", "r2", "r3")]
    assert found == [entry("a/b", "r4"), None, None, entry("a/b", "r3")]
    assert (await reader.state(BASE)).older == 1


async def test_a_registration_that_comes_after_its_retirement_and_a_newer_one_stays_an_older_revision(
    writer: CatalogWriter, reader: CatalogReader
) -> None:
    one, retirement, two = rows([entry("a/b", "r1"), Entry("a/b", retired=True), entry("a/b", "r2")])
    await writer.apply(BASE, [retirement, two], "p")
    await writer.apply(BASE, [one], "late")
    found = [await reader.find(BASE, "a/b", revision) for revision in ("", "r1")]
    assert found == [entry("a/b", "r2"), entry("a/b", "r1")]
    await make_complete(writer, BASE)
    await writer.apply(BASE, [one, retirement, two], "again")  # as a rebuild does, the oldest first
    found = [await reader.find(BASE, "a/b", revision) for revision in ("", "r1")]
    assert found == [entry("a/b", "r2"), None]


async def test_retired_names_of_long_ago_are_forgotten_when_a_leaf_is_full(
    redis_client: Redis, writer: CatalogWriter
) -> None:
    old = [Entry(f"a/gone-{number:03d}", retired=True) for number in range(40)]
    await writer.apply(BASE, rows(old), "p")
    leaf = keys.catalog_leaves(BASE)
    assert await redis_client.hlen(leaf) == 40
    await writer.apply(BASE, rows([entry(f"a/here-{number:03d}") for number in range(30)], 1000), "q", horizon=1000)
    assert await redis_client.zcard(keys.catalog(BASE, "directory")) == 1
    assert await redis_client.hlen(leaf) == 30


async def test_where_memory_is_full_names_are_retired_and_none_comes_in(
    redis_client: Redis, writer: CatalogWriter, reader: CatalogReader
) -> None:
    await writer.apply(BASE, rows(many(300)), "p")
    gone = [(1000 + at, Entry(each.name, retired=True)) for at, each in enumerate(many(200))]
    held = await memory(redis_client)
    async with full_memory(redis_client):
        for refused in (
            writer.apply(BASE, rows([entry("a/b")], 1000), "q"),
            writer.apply(BASE, [*gone, (2000, entry("a/b"))], "q"),
            writer.sequences(BASE, 1),
        ):
            with pytest.raises(CapacityExceeded, match="memory is full; retire adapters"):
                await refused
        assert await writer.sequences(BASE, 1, retiring=True) > 2000
        await writer.retire(BASE, [*gone, (2000, Entry("never/was", retired=True))])
        assert await memory(redis_client) < held
        assert len(await reader.all(BASE, limit=999)) == (await reader.state(BASE)).count == 100


async def test_catalogs_leave_room_for_the_functions_of_another_version(
    redis_client: Redis, writer: CatalogWriter, reader: CatalogReader
) -> None:
    most = (await redis_client.info("memory"))["used_memory"] + (8 << 20)
    await redis_client.config_set("maxmemory", most)
    try:
        taken = await fill(writer)
        assert taken
        await redis_client.function_flush()
        await MapWriter(redis_client, epoch=1).apply(BASE, MapChange(base=BaseRecord(base_model=BASE)))
        gone = [Entry(f"team/bot-{n:07d}", retired=True) for n in range(1000)]
        await writer.retire(BASE, rows(gone, await writer.sequences(BASE, 1000, retiring=True)))
        assert (await reader.state(BASE)).count == taken - 1000
    finally:
        await redis_client.config_set("maxmemory", 0)


async def test_the_map_is_unavailable_where_no_function_can_be_loaded(
    redis_client: Redis, writer: CatalogWriter, reader: CatalogReader
) -> None:
    await redis_client.function_flush()
    async with full_memory(redis_client):
        with pytest.raises(MapUnavailable, match="raise its maxmemory"):
            await reader.find(BASE, "a/b")


async def fill(writer: CatalogWriter) -> int:
    """Register adapters until one batch is refused; return how many were taken."""
    taken = 0
    while True:
        new = [entry(f"team/bot-{taken + n:07d}", f"r{taken + n}") for n in range(2000)]
        try:
            await writer.apply(BASE, rows(new, await writer.sequences(BASE, len(new))), f"p{taken}")
        except CapacityExceeded:
            return taken
        taken += len(new)


async def memory(redis: Redis) -> int:
    """Return the bytes that the catalog uses."""
    return sum([await redis.memory_usage(name) or 0 for name in await redis.keys("*catalog*")])


async def test_sequences_only_grow(redis_client: Redis, writer: CatalogWriter) -> None:
    first = await writer.sequences(BASE, 1000)
    assert await writer.sequences(BASE, 1) >= first + 1000
    await redis_client.flushall()
    await make_complete(writer, BASE, first + 10**12)  # manifests from a clock that was ahead
    assert await writer.sequences(BASE, 1) > first + 10**12


async def test_texts_beyond_the_dictionary_are_kept_all_the_same(
    redis_client: Redis, writer: CatalogWriter, reader: CatalogReader
) -> None:
    full = {f"text {number}": number for number in range(60_000)}
    await redis_client.hset(keys.catalog(BASE, "labels"), mapping={n: text for text, n in full.items()})
    await redis_client.hset(keys.catalog(BASE, "roots"), mapping={n: text for text, n in full.items()})
    everything = [entry(f"a/b-{number}", who=f"u{number}") for number in range(50)]
    await writer.apply(BASE, rows(everything), "p")
    assert await reader.find(BASE, "a/b-7") == everything[7]
    assert await reader.all(BASE, labels={"who": "u9"}, limit=9) == [everything[9]]


CHANGES = st.lists(
    st.tuples(st.sampled_from(["a", "a/b", "a/c", "b"]), st.sampled_from(["", "r1", "r2", "r3"]), st.booleans()),
    max_size=12,
)


@given(CHANGES, st.randoms(use_true_random=False))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_newest_states_do_not_depend_on_the_order_of_writes(
    redis_client: Redis, changes: list[tuple[str, str, bool]], order: random.Random
) -> None:
    await redis_client.flushall()
    writer, reader = CatalogWriter(redis_client), CatalogReader(redis_client)
    await make_complete(writer, BASE)
    everything = rows([Entry(n, retired=True) if gone else entry(n, revision) for n, revision, gone in changes])
    for number, row in enumerate(order.sample(everything, len(everything))):
        await writer.apply(BASE, [row], f"p{number}")
    states = newest(everything)
    assert await reader.all(BASE, limit=99) == chosen(states, "", {})
    assert (await reader.state(BASE)).count == len(states)
    for name, state in states.items():
        assert await reader.find(BASE, name) == state
        if state.revision:
            assert await reader.find(BASE, name, state.revision) == state


async def test_news_tell_which_names_changed(writer: CatalogWriter, reader: CatalogReader) -> None:
    async with reader.news(BASE) as wait:
        await writer.apply(BASE, rows([entry("a/b"), entry("a/c")]), "p")
        assert await until(lambda: wait(10.0)) == ["a/b", "a/c"]
        await writer.apply(BASE, rows(many(100)), "q")
        assert await until(lambda: wait(10.0)) == ["*"]

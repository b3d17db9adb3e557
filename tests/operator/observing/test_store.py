"""Listings, the watch and the answers to writes: none replaces newer knowledge from another."""

import msgspec

from mint_operator.observing.feed import Feed, News
from mint_operator.observing.store import Store


def raw(uid: str, version: int, generation: int = 1) -> bytes:
    metadata = {"uid": uid, "name": uid, "resourceVersion": str(version), "generation": generation}
    return msgspec.json.encode({"metadata": metadata})


def version(of: bytes | msgspec.Raw, _before: object) -> int:
    return int(msgspec.json.decode(of)["metadata"]["resourceVersion"])


def sighted(uid: str, at: int, *, gone: bool = False) -> News:
    return News("AdapterWave", raw(uid, at), gone=gone)


def answered(uid: str, at: int, generation: int = 1) -> News:
    """Return the API server's answer to a status that the operator wrote."""
    return News("AdapterWave", raw(uid, at, generation), own=True)


def listed() -> Store[int]:
    """Return a store that knows `a` and `b`, both at version 1."""
    store = Store(version)
    store.begin()
    store.replace([raw("a", 1), raw("b", 1)])
    return store


def test_what_a_listing_lacks_is_gone_and_what_it_has_anew_is_taken() -> None:
    store = listed()
    store.begin()
    store.replace([raw("b", 2), raw("c", 1)])
    assert store.objects == {"b": 2, "c": 1}


def test_what_was_sighted_while_the_listing_was_read_stays() -> None:
    store = listed()
    store.begin()
    store.take(sighted("new", 7))
    store.take(sighted("a", 8))
    store.replace([raw("a", 1), raw("b", 1)])
    assert store.objects == {"a": 8, "b": 1, "new": 7}


def test_what_was_deleted_while_the_listing_was_read_does_not_come_back() -> None:
    store = listed()
    store.begin()
    store.take(sighted("a", 9, gone=True))
    store.replace([raw("a", 1), raw("b", 1)])
    assert store.objects == {"b": 1}


def test_what_could_not_be_read_is_read_again_from_a_listing_although_its_version_is_the_same() -> None:
    """Other CRDs, as older ones after a rollback, change what the API server returns, and no resource version."""
    texts = iter(["unread", "unread", "read", "never decoded"])
    store = Store(lambda _raw, _before: next(texts), unread=lambda text: text == "unread")
    found = []
    for _ in range(4):
        store.begin()
        store.replace([raw("a", 1)])
        found.append(store.objects["a"])
    assert found == ["unread", "unread", "read", "read"]


def test_a_listing_that_is_newer_than_a_late_sighting_counts() -> None:
    store = listed()
    store.begin()
    store.take(sighted("a", 2))
    store.replace([raw("a", 3)])
    assert store.objects == {"a": 3}


def test_what_was_sighted_before_the_listing_began_may_be_gone() -> None:
    store = listed()
    store.take(sighted("a", 2))
    store.begin()
    store.replace([raw("b", 1)])
    assert store.objects == {"b": 1}


def test_after_the_api_server_s_store_was_restored_the_next_listing_counts_and_what_follows_it() -> None:
    store = listed()
    store.take(sighted("a", 9))
    store.begin()
    assert not store.take(sighted("a", 3)), "it may just be late"
    store.replace([raw("a", 4), raw("b", 1)])
    assert store.objects == {"a": 4, "b": 1}
    assert store.take(sighted("a", 5))
    assert store.objects == {"a": 5, "b": 1}


def test_what_is_listed_as_it_was_stays_the_same_object() -> None:
    store = Store(lambda raw, _: msgspec.json.decode(raw))
    for _ in range(2):
        store.begin()
        store.replace([raw("a", 1)])
        before = store.objects["a"]
    store.take(sighted("a", 1))
    assert store.objects["a"] is before


def test_the_answer_to_a_write_is_news_only_where_it_tells_of_an_edit() -> None:
    store = listed()
    assert not store.take(answered("a", 2))
    assert store.take(answered("a", 4, generation=2)), "somebody edited it before the status was written"
    assert not store.take(sighted("a", 4)), "the watch has nothing to add"
    assert not store.take(answered("a", 5, generation=2))


def test_an_answer_that_comes_late_does_not_hide_what_the_watch_has_seen() -> None:
    feed = Feed()
    edited, deleted = sighted("a", 3), sighted("b", 4, gone=True)
    for uid, news in [("a", edited), ("b", deleted), ("a", answered("a", 2)), ("b", answered("b", 2))]:
        feed.put(uid, news)
    assert feed.take() == [edited, deleted]


def test_of_what_changes_often_the_newest_is_fed() -> None:
    feed = Feed()
    for news in [sighted("a", 2), answered("a", 3), sighted("a", 5)]:
        feed.put("a", news)
    assert feed.take() == [sighted("a", 5)]
    feed.put("a", sighted("a", 5))
    feed.put("a", sighted("a", 6, gone=True))
    assert feed.take() == [sighted("a", 6, gone=True)]

"""A listing that is read beside the watch: neither takes back what the other knows better."""

import msgspec

from mint_operator.observing.feed import News
from mint_operator.observing.store import Store


def raw(uid: str, version: int) -> bytes:
    return msgspec.json.encode({"metadata": {"uid": uid, "name": uid, "resourceVersion": str(version)}})


def version(of: bytes | msgspec.Raw, _before: object) -> int:
    return int(msgspec.json.decode(of)["metadata"]["resourceVersion"])


def sighted(uid: str, at: int, *, gone: bool = False) -> News:
    return News("AdapterWave", raw(uid, at), gone=gone)


def listed() -> Store[int]:
    """A store that knows `a` and `b`, each of version 1."""
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

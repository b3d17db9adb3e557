"""Reference-counted pages, and full ones found again by what they were computed from."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from mint_contracts.layer_groups import PAGE_TOKENS, first_seen, pages_for
from mint_engine.scheduling.pages import Pages
from mint_engine.scheduling.prefix import PrefixCache, extend_keys, key_in
from mint_engine.scheduling.request import Completion, State
from mint_engine.scheduling.scheduler import Scheduler
from tests.engine.scheduled import TOTAL_PAGES, advance, completion, run, scheduler


def keys_of(tokens: list[int], revision: str = "", salt: str = "") -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, revision, tokens, salt)
    return keys


@given(st.lists(st.integers(0, 6), max_size=40))
def test_pages_are_never_lost(takes: list[int]) -> None:
    pages = Pages(TOTAL_PAGES)
    owners: list[list[int]] = []
    for count in takes:
        taken = pages.take(count)
        if taken is None:
            assert count > pages.free
            if owners:
                gone = owners.pop(0)
                assert all(pages.drop(page) for page in gone)
                pages.free_idle(gone)
        else:
            owners.append(taken)
        owned = [page for owner in owners for page in owner]
        assert len(set(owned)) == len(owned)
        assert all(1 <= page <= TOTAL_PAGES for page in owned), "page 0 is nobody's"
        assert len(owned) + pages.free == TOTAL_PAGES


def test_references_are_counted() -> None:
    pages = Pages(2)
    [page] = pages.take(1) or []
    pages.share(page)
    assert not pages.drop(page)
    with pytest.raises(ValueError, match="referred to"):
        pages.free_idle([page])
    assert pages.drop(page)
    with pytest.raises(ValueError, match="nobody refers"):
        pages.drop(page)
    pages.free_idle([page])
    for wrong in (page, 0, 3):
        for act in (pages.share, pages.drop, lambda each: pages.free_idle([each])):
            with pytest.raises(ValueError, match="not taken"):
                act(wrong)


@pytest.mark.parametrize(("tokens", "pages"), [(1, 1), (16, 1), (17, 2), (160, 10)])
def test_pages_for_tokens(tokens: int, pages: int) -> None:
    assert pages_for(tokens) == pages


@given(st.lists(st.integers(0, 2**31 - 1), max_size=70), st.integers(0, 70))
def test_keys_do_not_depend_on_how_they_are_computed(tokens: list[int], cut: int) -> None:
    keys = keys_of(tokens[:cut])
    extend_keys(keys, "", tokens)
    assert keys == keys_of(tokens)
    assert len(keys) == len(tokens) // PAGE_TOKENS


def test_a_key_is_of_the_revision_and_all_tokens_before() -> None:
    tokens = list(range(48))
    keys = keys_of(tokens, "sha256:a")
    assert len(set(keys)) == 3
    assert not set(keys) & set(keys_of(tokens, "sha256:b"))
    assert not set(keys) & set(keys_of(tokens))
    salted = keys_of(tokens, "sha256:a", "acme")
    assert keys_of(tokens, "sha256:a", "acme") == salted
    assert not set(salted) & {*keys, *keys_of(tokens, "sha256:a", "acme2"), *keys_of(tokens, "sha256:b", "acme")}
    changed = keys_of([7, *tokens[1:]], "sha256:a")
    assert not set(keys) & set(changed), "the first token is in the keys of all pages"
    assert keys_of([*tokens[:47], 7], "sha256:a")[:2] == keys[:2]


def cache_of(*tokens: list[int]) -> PrefixCache:
    """A cache that keeps the full pages of the given texts, all idle."""
    cache = PrefixCache(Pages(6))
    for each in tokens:
        keys = keys_of(each)
        taken = cache.take(len(keys))
        assert taken is not None
        for key, page in zip(keys, taken, strict=True):
            cache.publish(key, page)
        cache.release(taken)
    return cache


def test_a_published_prefix_is_found_as_far_as_it_goes() -> None:
    text = list(range(64))
    cache = cache_of(text)
    assert cache.available == 6
    [found] = cache.share(keys_of([*text[:40], 99, *text[41:]]))
    assert len(found) == 2
    assert cache.available == 4, "what is referred to is not for the taking"
    cache.release(found)
    assert cache.share(keys_of([99, *text[1:]])) == ([],)


def test_idle_pages_go_longest_unused_first_and_ends_before_beginnings() -> None:
    old, new = list(range(100, 148)), list(range(200, 248))
    cache = cache_of(old, new)
    assert cache.pages.free == 0
    cache.release(cache.share(keys_of(old))[0])  # now `new` was used longer ago
    assert cache.take(2) is not None
    assert len(cache.share(keys_of(new))[0]) == 1
    assert len(cache.share(keys_of(old))[0]) == 3
    assert cache.take(3) is None, "pages that are referred to are nobody else's"
    assert cache.find_imbalance() == ""


def test_a_second_page_of_the_same_text_stays_private() -> None:
    cache = cache_of(list(range(16)))
    [key] = keys_of(list(range(16)))
    [twin] = cache.take(1) or []
    cache.publish(key, twin)
    cache.release([twin])
    assert twin not in cache.idle
    assert cache.find_imbalance() == ""


def test_the_last_token_is_always_computed() -> None:
    books = scheduler()
    for length, computed in ((32, [32]), (32, [16]), (33, [1]), (34, [2])):
        each = completion(length)
        books.add(each)
        lengths = []
        while each.state is not State.ENDED:
            lengths += [share.length for share in advance(books)[0]]
        assert sum(lengths) == sum(computed), length


def test_another_revision_finds_nothing() -> None:
    books = scheduler()
    for adapter in ("", "a", "b"):
        books.add(completion(32, 1, adapter))
        assert sum(share.length for share in advance(books)[0]) == 20
        run(books)


def test_requests_without_a_revision_share_nothing() -> None:
    """Without a digest, a slot's contents are unknown."""
    books = scheduler()
    for _ in range(2):
        each = completion(18, 1, "a")
        each.request = type(each.request)(each.request.prompt, each.request.sampling, "a", "", 3)
        books.add(each)
        assert sum(share.length for share in advance(books)[0]) == 18
        assert not books.prefix.idle


def test_scores_of_the_prompt_are_computed_and_not_found() -> None:
    books = scheduler()
    for _ in range(2):
        books.add(completion(18, 1, scored=True))
        assert sum(share.length for share in advance(books)[0]) == 18


def test_only_pages_taken_anew_are_wiped() -> None:
    books = scheduler()
    books.add(completion(40, 20))
    advance(books)
    assert books.unwiped == books.running[0].pages
    shared = books.running[0].pages[:1]
    books.unwiped.clear()
    books.add(completion(range(20), 1))
    advance(books)
    other = next(each for each in books.running if len(each.request.prompt) == 20)
    assert other.pages[:1] == shared
    assert books.unwiped == other.pages[1:]


def test_siblings_wait_for_their_prompt() -> None:
    """The first of them computes it; the others then need only what is beyond its full pages."""
    books = scheduler()
    leader = completion(38, 3)
    followers = [completion(38, 3, leader=leader) for _ in range(2)]
    for each in (leader, *followers):
        books.add(each)
    computed = dict.fromkeys((leader, *followers), 0)
    while books.busy:
        fresh = {each for each in computed if not each.generated}
        for share in advance(books)[0]:
            computed[share.completion] += share.length if share.completion in fresh else 0
    assert list(computed.values()) == [38, 38 - 32, 38 - 32]
    assert all(each.state is State.ENDED for each in computed)


def test_siblings_wait_for_their_prompt_also_where_they_go_on_with_answers() -> None:
    books = scheduler()
    leader = completion(38, 5)
    leader.request = replace(leader.request, begun=(7, 8))
    leader.tokens += leader.request.begun
    follower = completion(38, 5, leader=leader)
    books.add(leader)
    books.add(follower)
    advance(books)
    assert follower.state is State.PARKED
    assert run(books) == [leader, follower]


def test_siblings_of_a_leader_that_ended_compute_it_themselves() -> None:
    books = scheduler()
    leader = completion(38, 3)
    follower = completion(38, 3, leader=leader)
    books.add(leader)
    books.add(follower)
    advance(books)
    assert follower.state is State.PARKED
    books.remove(leader)
    assert run(books) == [follower]


def looked_up(books: Scheduler, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths, in pages, of the prompts that are looked up from now on."""
    share, lengths = books.prefix.share, list[int]()

    def counted(keys: Sequence[bytes], windows: Sequence[int | None]) -> tuple[list[int], ...]:
        lengths.append(len(keys))
        return share(keys, windows)

    monkeypatch.setattr(books.prefix, "share", counted)
    return lengths


def test_a_cached_prompt_that_waits_for_pages_is_looked_up_again_once_some_were_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    books = scheduler()
    books.add(completion(80, 1, "a"))
    run(books)
    books.add(completion(range(100, 196), 3, "b"))
    advance(books)
    waiting = completion(81, 1, "a")
    books.add(waiting)
    lookups = looked_up(books, monkeypatch)
    ended: list[Completion] = []
    while not ended:
        ended = advance(books)[1]
    assert lookups == [5]
    advance(books)
    assert lookups == [5, 5]
    assert waiting.found == 80


def test_a_prompt_that_waits_for_pages_gets_them_as_soon_as_another_has_computed_its_beginning() -> None:
    books = scheduler()
    first, second = completion(100, 30), completion(100, 30)
    for each in (first, second):
        books.add(each)
    while second.state is State.WAITING:
        advance(books)
    assert second.found == 48, "so it needs four of the five pages, and one is left for the first"


ARRIVALS = st.lists(
    st.tuples(st.integers(0, 8), st.integers(1, 100), st.integers(1, 60), st.sampled_from(["", "a"])), max_size=8
)


@given(ARRIVALS, st.sampled_from([(None,), (7,)]))
def test_no_request_waits_longer_for_not_being_looked_up_in_each_step(
    arrivals: list[tuple[int, int, int, str]], windows: tuple[int | None, ...]
) -> None:
    """Each comes a number of steps after the one before it.

    If several idle pages of a window were found, it could begin anew once one of them is evicted, and find none.
    """

    def steps(*, each_step: bool) -> list[list[tuple[int, int]]]:
        books, left, found, pause = scheduler(pages=20, windows=windows), list(arrivals), [], 0
        while left or books.busy:
            while left and left[0][0] <= pause:
                _, prompt, new, adapter = left.pop(0)
                books.add(completion(prompt, new, adapter))
                pause = 0
            if each_step:
                for waiting in books.waiting:
                    waiting.lacked = None
            found.append([(share.completion.arrival, share.length) for share in advance(books, check=False)[0]])
            pause += 1
        return found

    assert steps(each_step=False) == steps(each_step=True)


PARTS = st.sets(st.tuples(st.integers(0, 2), st.integers(0, 7)))


@given(PARTS, st.sampled_from([(None, 20, 33), (16, 1, 64), (None, None, 40)]))
def test_a_beginning_is_found_as_far_as_every_group_can_go_on_from(
    cached: set[tuple[int, int]], windows: tuple[int | None, ...]
) -> None:
    """With any pages of three groups of layers cached: the longest prefix of which each has all pages it sees."""
    cache, keys = PrefixCache(Pages(30)), keys_of(list(range(8 * PAGE_TOKENS)))
    pages = dict(zip(sorted(cached), cache.take(len(cached)) or [], strict=True))
    for (group, at), page in pages.items():
        cache.publish(key_in(group, keys[at]), page)
    cache.release(pages.values())

    def goes_on(count: int) -> bool:
        firsts = [first_seen(count * PAGE_TOKENS, window) for window in windows]
        return all((group, at) in cached for group, first in enumerate(firsts) for at in range(first, count))

    reach = max(count for count in range(9) if goes_on(count))
    tables = cache.share(keys, windows)
    for group, (table, window) in enumerate(zip(tables, windows, strict=True)):
        first = first_seen(reach * PAGE_TOKENS, window)
        assert table == [0] * first + [pages[group, at] for at in range(first, reach)]
        assert all(cache.pages.references(page) == 1 for page in table[first:])
        cache.release(table)
    assert cache.available == 30
    assert cache.find_imbalance() == ""


def test_what_a_request_finds_of_its_own_after_a_pause_was_not_there_when_it_began() -> None:
    books = scheduler()
    first, other = completion(40, 100, "a"), completion(40, 100, "b")
    for each in (first, other):
        books.add(each)
    run(books)
    assert max(each.found for each in (first, other)) > 40, "one had to give way"
    assert [each.found_first for each in (first, other)] == [0, 0]

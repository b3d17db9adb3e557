"""Threads that clients share: however many or long one's works are, another's begin soon."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from mint_contracts import shared_threads
from mint_contracts.shared_threads import SharedThreads
from tests.waiting import PATIENCE_S, until

BRIEF_S, LONG_S = 1.0, 60.0


class Works:
    """Works that note that they begin; each takes its time on a clock of theirs, once it may end."""

    def __init__(self) -> None:
        self.begun = list[str]()
        self.now_s = 0.0
        self.may_end = threading.Event()

    def named(self, name: str, takes_s: float = 0.0, may_end: threading.Event | None = None) -> Callable[[], str]:
        def work() -> str:
            self.begun.append(name)
            (may_end or self.may_end).wait(PATIENCE_S)
            self.now_s += takes_s
            return name

        return work


@pytest.fixture
async def works(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Works]:
    found = Works()
    monkeypatch.setattr(shared_threads, "monotonic", lambda: found.now_s)
    yield found
    found.may_end.set()


async def test_a_client_has_as_many_threads_as_it_leaves_free(works: Works) -> None:
    threads = SharedThreads(4, "test")
    running = [asyncio.create_task(threads.run("a", works.named(f"a{number}"))) for number in range(6)]
    await until(lambda: works.begun == ["a0", "a1"])
    running += [asyncio.create_task(threads.run(client, works.named(client))) for client in ("b", "c")]
    await until(lambda: sorted(works.begun) == ["a0", "a1", "b", "c"])
    works.may_end.set()
    assert await asyncio.gather(*running) == ["a0", "a1", "a2", "a3", "a4", "a5", "b", "c"]


async def test_brief_works_wait_for_one_long_work_of_others(works: Works) -> None:
    """If clients took turns, each brief work would wait for a long one."""
    threads = SharedThreads(1, "test")
    running = [asyncio.create_task(threads.run("a", works.named("long", LONG_S))) for _ in range(6)]
    await until(lambda: works.begun)
    running += [asyncio.create_task(threads.run("b", works.named("brief", BRIEF_S))) for _ in range(8)]
    await asyncio.sleep(0)
    works.may_end.set()
    await asyncio.gather(*running)
    assert works.begun == ["long"] + ["brief"] * 8 + ["long"] * 5


async def test_a_client_that_comes_again_still_owes_what_it_took(works: Works) -> None:
    threads, first_may_end = SharedThreads(1, "test"), threading.Event()
    first = asyncio.create_task(threads.run("a", works.named("long", LONG_S, first_may_end)))
    await until(lambda: works.begun)
    running = [asyncio.create_task(threads.run("b", works.named("brief", BRIEF_S))) for _ in range(8)]
    await asyncio.sleep(0)
    first_may_end.set()
    await first
    running.append(asyncio.create_task(threads.run("a", works.named("again", BRIEF_S))))
    await asyncio.sleep(0)
    works.may_end.set()
    await asyncio.gather(*running)
    assert works.begun == ["long"] + ["brief"] * 8 + ["again"]


async def test_a_work_that_nobody_waits_for_does_not_begin(works: Works) -> None:
    threads = SharedThreads(1, "test")
    running, dropped, last = (asyncio.create_task(threads.run("a", works.named(name))) for name in ("a", "b", "c"))
    await until(lambda: works.begun)
    dropped.cancel()
    await asyncio.wait([dropped])
    assert sum(map(len, threads._waiting.values())) == 1, "nothing is kept of it, however long the others take"
    works.may_end.set()
    await asyncio.gather(running, last)
    assert works.begun == ["a", "c"]


async def test_an_error_is_the_waiters_and_frees_the_thread(works: Works) -> None:
    threads = SharedThreads(1, "test")
    works.may_end.set()

    def fail() -> None:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        await threads.run("a", fail)
    assert await threads.run("a", works.named("next")) == "next"


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


async def test_what_no_thread_can_be_started_for_is_refused_and_never_done(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The executor queues it before it starts a thread."""
    threads = SharedThreads(2, "test")
    works.may_end.set()
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await threads.run("a", works.named("refused"))
    assert await threads.run("a", works.named("next")) == "next"
    assert await threads.run("a", works.named("last")) == "last"
    assert works.begun == ["next", "last"]


async def test_a_thread_that_there_is_does_what_no_other_can_be_started_for(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = SharedThreads(2, "test")
    first = asyncio.create_task(threads.run("a", works.named("first")))
    await until(lambda: works.begun)
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        second = asyncio.create_task(threads.run("b", works.named("second")))
        await asyncio.sleep(0)
    works.may_end.set()
    assert list(await asyncio.gather(first, second)) == ["first", "second"]

"""Threads that clients share, so that none waits long for others, however many or long their works are."""

from asyncio import CancelledError, wrap_future
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from time import monotonic
from typing import Any, TypeVar

from mint_contracts.shares import Shares

T = TypeVar("T")

_Work = tuple[Future[Any], Callable[[], Any]]


class SharedThreads:
    """A few threads. A client has at most as many as it leaves free; among those that wait and may have one, the
    client whose works have taken the least time comes first. A client's own works begin in order.

    A client that is new, or had nothing to do for a while, counts as having taken as long as the one that began last:
    its rest gives it no lead.
    """

    def __init__(self, count: int, name: str) -> None:
        self._threads, self._shares, self._lock = ThreadPoolExecutor(count, name), Shares(count), Lock()
        self._waiting: dict[str, deque[_Work]] = {}
        self._took_s: dict[str, float] = {}
        self._least_s = 0.0  # what the client that began last had taken
        self._started = False  # there is a thread, and so one that takes what is queued

    async def run(self, client: str, work: Callable[[], T]) -> T:
        """Return the work's result. If cancelled, it does not begin, or ends unheard.

        Raises RuntimeError if there is no thread yet, and none can be started.
        """
        future = self._submit(client, work)
        try:
            return await wrap_future(future)
        except CancelledError:
            self._leave(client, future)
            raise

    def _submit(self, client: str, work: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            self._took_s[client] = max(self._took_s.get(client, 0.0), self._least_s)
            self._waiting.setdefault(client, deque()).append((future, work))
            self._begin()
        return future

    def _leave(self, client: str, future: Future[Any]) -> None:
        """Keep a cancelled work no longer: those before it may never end."""
        with self._lock:
            if left := deque(each for each in self._waiting.get(client, ()) if each[0] is not future):
                self._waiting[client] = left
            else:
                self._waiting.pop(client, None)

    def _begin(self) -> None:
        """Begin what may begin; with the lock."""
        while able := [client for client in self._waiting if self._shares.may_take(client)]:
            client = min(able, key=self._took_s.__getitem__)
            works = self._waiting[client]
            future, work = works.popleft()
            if not works:
                del self._waiting[client]
            if future.set_running_or_notify_cancel():
                self._shares.take(client)
                self._least_s = self._took_s[client]
                try:
                    self._threads.submit(self._do, client, future, work)
                    self._started = True
                except RuntimeError as error:  # no further thread could be started, but the work is queued
                    if not self._started:
                        self._shares.give_back(client)
                        future.set_exception(error)

    def _do(self, client: str, future: Future[T], work: Callable[[], T]) -> None:
        if future.done():  # refused, when there was no thread
            return
        began = monotonic()
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the one that waits for the work
            self._end(client, monotonic() - began)
            future.set_exception(error)
        else:
            self._end(client, monotonic() - began)
            future.set_result(result)

    def _end(self, client: str, took_s: float) -> None:
        with self._lock:
            self._shares.give_back(client)
            self._took_s[client] += took_s
            self._begin()
            if not self._shares.all_taken:
                self._took_s.clear()
                self._least_s = 0.0

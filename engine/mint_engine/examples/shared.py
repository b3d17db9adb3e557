"""Data sets shared by many policies, each in memory once. Belongs to the event loop."""

import asyncio
import hashlib
from dataclasses import dataclass
from weakref import WeakValueDictionary

import msgspec

from mint_contracts.errors import Overloaded, SourceUnavailable
from mint_contracts.training import Dataset
from mint_engine.examples.dataset import MOST_S, read_dataset
from mint_engine.examples.held import Examples
from mint_engine.sources.blocking import run_blocking

AT_ONCE = 2  # files read at once: their bytes are in memory beside the examples, and parsing slows the event loop
TURN_S = 30.0  # how long a file waits for its turn to be read before its readers are refused

_Key = tuple[str, bytes]


@dataclass(eq=False)
class _Reading:
    """A data set that is being read, or waits for its turn, and the number of callers that wait for it."""

    task: asyncio.Task[Examples]
    waiting: int = 0


class Datasets:
    """The data sets in use. Policies of one run share what was read; another run reads the source again."""

    def __init__(self) -> None:
        self._held: WeakValueDictionary[_Key, Examples] = WeakValueDictionary()
        self._firsts: WeakValueDictionary[tuple[_Key, int], Examples] = WeakValueDictionary()
        self._readings: dict[_Key, _Reading] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    async def read(self, run: str, dataset: Dataset) -> Examples:
        """Return every example of a data set.

        Raises as `read_dataset`, to all callers that wait for the same; Overloaded if its turn does not come in time.
        """
        key = _key(run, dataset)
        found = self._held.get(key)
        if found is not None:
            return found
        reading = self._readings.get(key)
        if reading is None:
            reading = self._readings[key] = _Reading(asyncio.create_task(self._read(dataset)))
        reading.waiting += 1
        try:
            found = self._held[key] = await asyncio.shield(reading.task)
            return found
        finally:
            reading.waiting -= 1
            if not reading.waiting:  # it is done, or no caller is left
                reading.task.cancel()
                del self._readings[key]

    async def first(self, run: str, dataset: Dataset, count: int) -> Examples:
        """Return the first `count` examples, which hold none of the others in memory. Raises as `read`."""
        key = (_key(run, dataset), count)
        found = self._firsts.get(key)
        if found is None:
            every = await self.read(run, dataset)
            found = self._firsts.setdefault(key, await asyncio.to_thread(lambda: every[:count]))
        return found

    async def _read(self, dataset: Dataset) -> Examples:
        if dataset.lines:  # already in memory, and quickly read
            return await asyncio.to_thread(read_dataset, dataset)
        subject = f"dataset {dataset.uri!r}"
        try:
            async with asyncio.timeout(TURN_S):
                await self._room.acquire()
        except TimeoutError:
            raise Overloaded(subject, f"waits for {AT_ONCE} others that are read before it") from None
        reading = asyncio.ensure_future(run_blocking(read_dataset, dataset))
        reading.add_done_callback(lambda _: self._room.release())  # the thread continues even if nobody waits
        try:
            async with asyncio.timeout(MOST_S):
                return await asyncio.shield(reading)
        except TimeoutError:
            raise SourceUnavailable(subject, f"could not be read within {MOST_S:.0f} s") from None


def _key(run: str, dataset: Dataset) -> _Key:
    return run, hashlib.sha256(msgspec.json.encode(dataset)).digest()

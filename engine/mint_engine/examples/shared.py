"""Data sets that many policies learn from, each in memory once. Lives on the event loop."""

import asyncio
import hashlib
from collections.abc import Sequence
from weakref import WeakValueDictionary

import msgspec

from mint_contracts.training import Dataset
from mint_engine.examples.dataset import read_dataset
from mint_engine.examples.example import Example

AT_ONCE = 2  # are read: their bytes are in memory beside their examples, and parsing takes turns with the event loop

_Key = tuple[str, bytes]


class Examples(list[Example]):
    """A data set's examples, which nobody changes. (A list itself can not be held weakly.)"""


class Datasets:
    """Those that somebody holds. Policies of one run share what they read; another run reads what is there then."""

    def __init__(self) -> None:
        self._held: WeakValueDictionary[_Key, Examples] = WeakValueDictionary()
        self._turns: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()
        self._room = asyncio.Semaphore(AT_ONCE)

    async def read(self, run: str, told: Dataset) -> Examples:
        """Every example of a data set. Raises as `read_dataset`."""
        key = (run, hashlib.sha256(msgspec.json.encode(told)).digest())
        async with self._turns.setdefault(key, asyncio.Lock()):
            found = self._held.get(key)
            if found is None:
                found = self._held[key] = Examples(await self._read(told))
            return found

    async def _read(self, told: Dataset) -> Sequence[Example]:
        await self._room.acquire()
        reading = asyncio.ensure_future(asyncio.to_thread(read_dataset, told))
        reading.add_done_callback(lambda _: self._room.release())  # a thread goes on though nobody waits any more
        return await asyncio.shield(reading)

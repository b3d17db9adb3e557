"""Data sets that many policies learn from, each in memory once. Lives on the event loop."""

import asyncio
from weakref import WeakValueDictionary

import msgspec

from mint_contracts.training import Dataset
from mint_engine.examples.dataset import read_dataset
from mint_engine.examples.example import Example

_Key = tuple[str, bytes]


class Examples(list[Example]):
    """A data set's examples, which nobody changes. (A list itself can not be held weakly.)"""


class Datasets:
    """Those that somebody holds. Policies of one run share what they read; another run reads what is there then."""

    def __init__(self) -> None:
        self._held: WeakValueDictionary[_Key, Examples] = WeakValueDictionary()
        self._turns: WeakValueDictionary[_Key, asyncio.Lock] = WeakValueDictionary()

    async def read(self, run: str, told: Dataset) -> Examples:
        """Every example of a data set. Raises as `read_dataset`."""
        key = (run, msgspec.json.encode(told))
        async with self._turns.setdefault(key, asyncio.Lock()):
            found = self._held.get(key)
            if found is None:
                found = self._held[key] = Examples(await asyncio.to_thread(read_dataset, told))
            return found

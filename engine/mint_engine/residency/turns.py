"""A number of turns at once, such as reads, for which clients wait as they do for slots (see `slot_turns`)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from mint_engine.residency.slot_turns import in_turns, remember

Choose = Callable[[Mapping[str, int]], str]  # returns whose turn one takes, from when each client had its last


class Turns:
    """At most `count` turns at once. Used only on the event loop's thread."""

    def __init__(self, count: int) -> None:
        self._free, self._given = count, 0
        self._line: list[tuple[Choose, asyncio.Future[None]]] = []  # longest wait first
        self._last: dict[str, int] = {}  # when each client got its last turn, the longest ago first

    @asynccontextmanager
    async def turn(self, client: Choose) -> AsyncIterator[None]:
        """Wait for a client's turn, which lasts for the duration of the block."""
        came = client, asyncio.get_running_loop().create_future()
        self._line.append(came)
        try:
            self._pass_on()
            if not came[1].done():
                await asyncio.wait({came[1]})  # does not cancel it
            yield
        finally:
            if came[1].done():
                self._free += 1
            else:
                self._line.remove(came)
            self._pass_on()

    def _pass_on(self) -> None:
        while self._free and self._line:
            clients = [choose(self._last) for choose, _ in self._line]
            at = in_turns([(client,) for client in clients], self._last)[0]
            _, given = self._line.pop(at)
            self._free -= 1
            self._given += 1
            remember(self._last, clients[at], self._given)
            given.set_result(None)

"""Asking engines whether bases' stores have an adapter: gateways cannot read the stores themselves."""

import asyncio
from collections.abc import Callable, Collection
from enum import Enum

import grpc

from mint_contracts.engine_pb2 import LookForAdapterRequest
from mint_contracts.errors import Unavailable
from mint_gateway.answers import FRESH_S, Answers
from mint_gateway.channels import Channels
from mint_gateway.choose import Now, candidates
from mint_gateway.inflight import InFlight
from mint_gateway.view import MapView

ASK_S = 6.0  # an engine gives its store five
REMEMBERED = 16_384


class Told(Enum):
    """What a base's engine tells of its store."""

    HAS = "has"  # or may have, if engines of its version cannot tell
    LACKS = "lacks"
    LACKED = "lacked"  # when it could last be asked
    CANNOT_TELL = "cannot tell"  # now, since no engine or store answers


class Stores:
    """The stores of bases. `now` returns what the gateway knows of a base's engines."""

    def __init__(self, channels: Channels, in_flight: InFlight, now: Callable[[MapView], Now]) -> None:
        self._channels, self._in_flight, self._now = channels, in_flight, now
        self._answers: Answers[tuple[str, str], Told] = Answers(REMEMBERED)

    async def having(self, views: Collection[MapView], adapter: str, *, elsewhere: bool) -> list[MapView]:
        """Return those of these bases whose stores have the adapter, or the only one that may have it.

        `elsewhere` says that another base may have it, too. A store that cannot be asked now counts as it last
        answered, but if it lacked what no other may have, it may have that by now. Raises Unavailable if it depends
        on one that cannot tell. A base of which no engine has been ready yet does not count beside one that has the
        adapter.
        """
        answers = await asyncio.gather(*(self._ask(view, adapter) for view in views))
        told = {view.base: answer for view, answer in zip(views, answers, strict=True)}
        left = [view for view in views if told[view.base] in (Told.HAS, Told.CANNOT_TELL)]
        left = left or [view for view in views if told[view.base] is Told.LACKED]
        if Told.HAS in answers:
            left = [view for view in left if told[view.base] is Told.HAS or not _is_new(view)]
        if len(left) + elsewhere > 1 and answers.count(Told.HAS) < min(len(left), 2):
            names = ", ".join(sorted(view.base for view in left))
            untold = ", ".join(sorted(view.base for view in left if told[view.base] is not Told.HAS))
            message = f"could be on several base models, but {untold} cannot tell now; retry, or name one of {names}"
            raise Unavailable(f"adapter {adapter!r}", message, retry_after_s=FRESH_S)
        return left

    async def _ask(self, view: MapView, adapter: str) -> Told:
        key = view.base, adapter
        known = self._answers.known(key)
        if known is not None and known.fresh:
            return known.value
        return await self._answers.asked(key, lambda: self._told(view, adapter))

    async def _told(self, view: MapView, adapter: str) -> Told:
        """Return what a store tells or, if it cannot now, what it last told.

        Otherwise, while the only engine of one base starts again, names in all other bases' stores would be in doubt.
        """
        told = await self._look(view, adapter)
        known = self._answers.known((view.base, adapter))
        if told is not Told.CANNOT_TELL or known is None:
            return told
        return Told.LACKED if known.value is Told.LACKS else known.value

    async def _look(self, view: MapView, adapter: str) -> Told:
        able = candidates(view, "", self._now(view))
        if not able:
            return Told.CANNOT_TELL
        address = able[0].address
        with self._in_flight.at(address):
            async with self._channels.use(address) as stubs:
                try:
                    answer = await stubs.engine.LookForAdapter(LookForAdapterRequest(adapter=adapter), timeout=ASK_S)
                except grpc.aio.AioRpcError as error:
                    return Told.HAS if error.code() is grpc.StatusCode.UNIMPLEMENTED else Told.CANNOT_TELL
        return Told.HAS if answer.found else Told.LACKS


def _is_new(view: MapView) -> bool:
    return view.record is not None and view.record.unserved

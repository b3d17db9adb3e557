"""Asking engines which bases' stores lack an adapter: gateways cannot read the stores themselves."""

import asyncio
from collections.abc import Callable, Collection

import grpc

from mint_contracts.engine_pb2 import LookForAdapterRequest
from mint_gateway.channels import Channels
from mint_gateway.choose import Now, candidates
from mint_gateway.view import MapView

ASK_S = 6.0  # an engine gives its store five


async def without(
    views: Collection[MapView], adapter: str, channels: Channels, now: Callable[[MapView], Now]
) -> frozenset[str]:
    """Return those of the bases whose stores certainly lack the adapter, as an engine of each says.

    A base of which no engine can tell counts as one that may have it; a name that the caller's key does not open, as
    one that no store has.
    """

    async def lacks(view: MapView) -> bool:
        if not view.scope.adapter(adapter):
            return True
        able = candidates(view, "", now(view))
        if not able:
            return False
        async with channels.use(able[0].address) as stubs:
            try:
                return not (await stubs.engine.LookForAdapter(asked, timeout=ASK_S)).found
            except grpc.aio.AioRpcError:
                return False

    asked = LookForAdapterRequest(adapter=adapter)
    answers = await asyncio.gather(*map(lacks, views))
    return frozenset(view.base for view, lacking in zip(views, answers, strict=True) if lacking)

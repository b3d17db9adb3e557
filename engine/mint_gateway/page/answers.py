"""The JSON that the page requests: its own lists, and the answers of gRPC calls.

Each respects the key's scope as its gRPC counterpart does: mirror and watch show only what the key opens.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from aiohttp import web

from mint_contracts.errors import InvalidRequest, MapUnavailable, NotFound
from mint_contracts.names import check_wave
from mint_contracts.training_pb2 import WaveProgress
from mint_gateway.as_json import as_json
from mint_gateway.explainer import Explainer
from mint_gateway.http.error_middleware import reply
from mint_gateway.inflight import InFlight
from mint_gateway.page.bases import MOST_DETAIL
from mint_gateway.page.files import FILES, send
from mint_gateway.page.names import Names
from mint_gateway.page.overview import Overview
from mint_gateway.page.pages import Asked, asked, number
from mint_gateway.page.policies import policies
from mint_gateway.page.waves import thinned
from mint_gateway.trainer.forwarding import Forwarding
from mint_gateway.waves.watch import WaveWatch

PREFIX = "/v1/mint"
BASES, BASES_MOST = 10, 100
WAVES, WAVES_MOST = 25, 200
POLICIES, POLICIES_MOST = 24, 100
NAMES, NAMES_MOST = 20, 100
STEPS_READ = 2_000  # a policy's last rewards
POINTS = 240  # in a policy's curve
_FRESH = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}

Query = Mapping[str, str]
T = TypeVar("T")


class Page:
    """The routes of the web page. `calls` counts and bounds its requests, together with other calls."""

    def __init__(
        self,
        overview: Overview,
        why: Explainer,
        watch: WaveWatch,
        names: Names,
        forwarding: Forwarding,
        calls: InFlight,
    ) -> None:
        self._overview, self._why, self._watch, self._names = overview, why, watch, names
        self._forwarding, self._calls = forwarding, calls

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Add the routes of the page's files and of the JSON that they request."""
        for path in FILES:
            router.add_get(path, send)
        self._add_list(router, "bases", self._overview.bases, BASES, BASES_MOST)
        self._add_list(router, "waves/serving", self._overview.serving, WAVES, WAVES_MOST)
        self._add_list(router, "waves/training", self._overview.training, WAVES, WAVES_MOST)
        self._add_list(router, "policies", partial(policies, self._forwarding), WAVES, WAVES_MOST)
        self._add_list(router, "adapters", self._adapters, NAMES, NAMES_MOST)
        router.add_get(f"{PREFIX}/wave", self._wave)
        router.add_get(f"{PREFIX}/adapter", self._adapter)

    def _add_list(
        self, router: web.UrlDispatcher, path: str, make: Callable[[Asked], Awaitable[Any]], limit: int, most: int
    ) -> None:
        """Add the route of a list. `make` returns a page of it, by default with `limit` items."""

        async def answer(http: web.Request) -> web.Response:
            page = asked(http.query, default=limit, most=most)
            return await self._answer(lambda: make(page))

        router.add_get(f"{PREFIX}/{path}", answer)

    async def _wave(self, http: web.Request) -> web.Response:
        """Answer with a wave's explanation and, if it trains, its progress and some of its policies."""
        name = check_wave(_named(http.query, "name"))
        start = number(http.query, "start", 0, 0, 10**9 - 1)
        limit = number(http.query, "limit", POLICIES, 1, POLICIES_MOST)

        async def answer() -> dict[str, Any]:
            why = await _if_any(self._why.wave(name))
            progress = await _if_any(self._watch.page(name, start, limit, STEPS_READ))
            if isinstance(why, Exception) and isinstance(progress, Exception):
                raise why
            return {
                "explanation": None if isinstance(why, Exception) else as_json(why),
                "progress": None if isinstance(progress, Exception) else _progress(progress),
            }

        return await self._answer(answer)

    async def _adapter(self, http: web.Request) -> web.Response:
        """Answer with the explanation of an adapter, or of the bare base if the name is empty."""
        query = http.query

        async def answer() -> dict[str, Any]:
            return as_json(await self._why.adapter(query.get("base_model", ""), query.get("name", "")))

        return await self._answer(answer)

    async def _adapters(self, page: Asked) -> dict[str, Any]:
        """Return some adapter names that begin with the prefix."""
        return {"names": await self._names.beginning(page)}

    async def _answer(self, make: Callable[[], Awaitable[Any]]) -> web.Response:
        with self._calls.admit():
            return reply(await make(), headers=_FRESH)


async def _if_any(asking: Awaitable[T]) -> T | NotFound | MapUnavailable:
    """Return the answer, or the error if unknown: a wave may have a record and no progress yet, or the reverse."""
    try:
        return await asking
    except (NotFound, MapUnavailable) as error:
        return error


def _progress(progress: WaveProgress) -> dict[str, Any]:
    """Return the progress as JSON with thinned rewards: a point per `every` steps, the last at the last step."""
    answer = as_json(progress)
    for policy, shown in zip(progress.policies, answer["policies"], strict=True):
        shown["rewards"], shown["every"] = thinned(policy.rewards, POINTS)
        shown["failure_message"] = policy.failure_message[:MOST_DETAIL]
    return answer


def _named(query: Query, name: str) -> str:
    if name not in query:
        raise InvalidRequest(name, "is missing")
    return query[name]

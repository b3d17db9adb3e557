"""Explanations of adapters and waves for both doors, within the scope of the caller's key."""

from mint_contracts.errors import MintError, NotFound
from mint_contracts.map_reader import MapReader
from mint_contracts.names import check_wave
from mint_contracts.placement_pb2 import Explanation, WaveExplanation
from mint_gateway.explain import explain
from mint_gateway.mirror import Mirror
from mint_gateway.route import Router
from mint_gateway.security.scope_filter import waves_within
from mint_gateway.view import incomplete
from mint_gateway.waves.explain import explain_wave


class Explainer:
    """Explains from the mirror's views and from Redis, which has the wave records."""

    def __init__(self, router: Router, mirror: Mirror, reader: MapReader) -> None:
        self._router, self._mirror, self._reader = router, mirror, reader

    async def adapter(self, base: str, adapter: str) -> Explanation:
        """Explain where an adapter is and which engine would answer now. Raises as `Router.locate` does."""
        view, source = await self._router.locate(base, adapter)
        return explain(view.with_source(adapter, source), adapter, self._router.now(view))

    async def wave(self, name: str) -> WaveExplanation:
        """Explain a wave's state. Raises InvalidRequest, NotFound, MapUnavailable."""
        wave = check_wave(name)
        unknown: MintError | None = None
        for base, view in sorted(self._mirror.views_in_scope().items()):
            has = await self._reader.has_wave(base, wave)
            if has is None:
                unknown = incomplete(base)
            if has and view.scope.wave(wave):
                others = waves_within(await self._reader.waves(base), view.scope)
                if wave in others:  # it was not deleted in between
                    return explain_wave(view, others[wave], others)
        if unknown:
            raise unknown
        message = "is not a wave over any base model that is served; see kubectl get adapterwaves"
        raise NotFound(f"wave {wave}", message)

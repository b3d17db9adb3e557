"""What each engine of a base reports to the placement map."""

from typing import Any

from mint_contracts.map_reader import MapReader
from mint_contracts.records import EngineRecord, EngineView


def engine_record(engine: str, **changes: Any) -> EngineRecord:
    """Return the first report of an engine that is ready, idle and empty, with these changes."""
    fields: dict[str, Any] = {"address": "10.0.0.1:8470", "incarnation": 1, "map_version": 1, "sequence": 1}
    fields |= {"ready": True, "slots_used": 0, "slots_total": 8, "running": 0, "waiting": 0}
    return EngineRecord(engine, **(fields | changes))


async def engine_views(reader: MapReader, base: str) -> list[EngineView]:
    """Return every engine that ever reported, sorted by name, with its record and what it holds."""
    engines = (await reader.pulse(base)).engines
    held = await reader.holdings(base, list(engines))
    return [EngineView(name, record, held[name]) for name, record in engines.items()]

"""What each engine of a base reports to the placement map."""

from mint_contracts.map_reader import MapReader
from mint_contracts.records import EngineView


async def engine_views(reader: MapReader, base: str) -> list[EngineView]:
    """Return every engine that ever reported, sorted by name, with its record and what it holds."""
    engines = (await reader.pulse(base)).engines
    held = await reader.holdings(base, list(engines))
    return [EngineView(name, record, held[name]) for name, record in engines.items()]

"""Looking for an adapter in a store, without fetching it."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from mint_contracts.errors import SourceNotFound, SourceUnavailable
from mint_contracts.source import Source
from mint_engine.sources.fetch import CONFIG, PACKED, WEIGHTS
from mint_engine.sources.storage import folder_of, subject_of

LOOK_S = 5.0  # to wait for a store, which lists a folder in a fraction of that

_threads = ThreadPoolExecutor(4, "names")  # no more of a store's silent reads may keep their threads


async def look_for(source: Source) -> list[str]:
    """Return which of an adapter's files are at the source. Raises MintError if the source cannot be read soon."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOK_S):
            files = await loop.run_in_executor(_threads, lambda: folder_of(source).files(CONFIG, WEIGHTS, PACKED))
    except SourceNotFound:
        return []
    except TimeoutError:
        raise SourceUnavailable(subject_of(source), f"has not answered for {LOOK_S:g} s; retry later") from None
    return sorted(files.keys() & {CONFIG, WEIGHTS, PACKED})

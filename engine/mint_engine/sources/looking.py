"""Looking for an adapter in a store, without fetching it."""

import asyncio
from collections import Counter
from typing import Literal

from mint_contracts.errors import Overloaded, SourceNotFound, SourceUnavailable
from mint_contracts.shared_threads import SharedThreads
from mint_contracts.source import Source
from mint_engine.sources.fetch import CONFIG, PACKED, WEIGHTS
from mint_engine.sources.storage import folder_of, subject_of

LOOK_S = 5.0  # to wait for a store, which lists a folder in a fraction of that
MOST_LOOKS = 64  # at a time, for each purpose

Purpose = Literal["requests", "policies"]

# No more of a store's silent reads may keep their threads, and those of one purpose only half of them.
_threads = SharedThreads(4, "names")
_looking = Counter[Purpose]()


async def look_for(source: Source, purpose: Purpose) -> list[str]:
    """Return which of an adapter's files are at the source. Raises MintError if the source cannot be read soon."""
    if _looking[purpose] >= MOST_LOOKS:
        message = f"is already asked for {MOST_LOOKS} names; retry later"
        raise Overloaded(subject_of(source), message, retry_after_s=LOOK_S)
    _looking[purpose] += 1
    try:
        async with asyncio.timeout(LOOK_S):
            files = await _threads.run(purpose, lambda: folder_of(source).files(CONFIG, WEIGHTS, PACKED))
    except SourceNotFound:
        return []
    except TimeoutError:
        raise SourceUnavailable(subject_of(source), f"has not answered for {LOOK_S:g} s; retry later") from None
    finally:
        _looking[purpose] -= 1
    return sorted(files.keys() & {CONFIG, WEIGHTS, PACKED})

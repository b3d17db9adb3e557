"""Reading a manifest of policies: JSON lines at a URI, read once, in a thread of its own and within bounds."""

import asyncio
from collections.abc import Iterable

import msgspec

from mint_contracts.backends import backend
from mint_contracts.errors import InvalidRequest, MintError, SourceForbidden, SourceUnavailable
from mint_contracts.records import Failure
from mint_contracts.source import Source, locate
from mint_contracts.training import Policy

SCHEMES = ("s3", "gs", "https", "http")  # what the operator can reach; claims and images are the engines'
MOST_BYTES = 4 << 20
MOST_POLICIES = 1024
READ_S = 60.0
RETRY_S = 30.0

Read = tuple[Policy, ...] | Failure


class Manifests:
    """Manifests that waves name, by URI. One is read when it is first named, and again later if that failed."""

    def __init__(self) -> None:
        self._work: dict[str, asyncio.Task[Read]] = {}
        self._again_at: dict[str, float] = {}
        self.found: dict[str, Read] = {}

    def want(self, uris: Iterable[str]) -> None:
        """Begin to read what is new, take what has been read, forget the rest."""
        wanted, now = set(uris), asyncio.get_running_loop().time()
        for uri in self._work.keys() | self.found.keys():
            if uri not in wanted:
                self.found.pop(uri, None)
                if task := self._work.pop(uri, None):
                    task.cancel()
        for uri in wanted:
            task = self._work.get(uri)
            if task is not None and task.done():
                del self._work[uri]
                self.found[uri], self._again_at[uri] = task.result(), now + RETRY_S
            elif task is None and self._due(uri, now):
                self._work[uri] = asyncio.create_task(read(uri))

    def _due(self, uri: str, now: float) -> bool:
        known = self.found.get(uri)
        failed = isinstance(known, Failure) and not known.terminal
        return known is None or (failed and now >= self._again_at[uri])


async def read(uri: str) -> Read:
    """The policies, or why they cannot be had."""
    try:
        async with asyncio.timeout(READ_S):
            return parsed(uri, await asyncio.to_thread(_fetch, uri))
    except MintError as error:
        return Failure(error.reason, str(error), terminal=error.terminal)
    except TimeoutError:
        return Failure("SourceUnavailable", f"manifest {uri}: was not read within {READ_S:.0f} s", terminal=False)


def parsed(uri: str, data: bytes) -> tuple[Policy, ...]:
    """One policy a line. Raises InvalidRequest naming the line."""
    found = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found.append(msgspec.json.decode(line, type=Policy))
        except msgspec.DecodeError as error:
            raise InvalidRequest(f"manifest {uri}", f"line {number} is no policy: {error}") from None
    if not 0 < len(found) <= MOST_POLICIES:
        raise InvalidRequest(f"manifest {uri}", f"has {len(found)} policies; a wave takes 1 to {MOST_POLICIES}")
    return tuple(found)


def _fetch(uri: str) -> bytes:
    place = locate(Source(uri=uri))
    if place.scheme not in SCHEMES:
        said = f"the operator reads it, and can reach only {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
        raise SourceForbidden(f"manifest {uri}", said)
    storage = backend(place.scheme)
    path = uri if place.scheme in {"http", "https"} else f"{place.host}/{place.path}"
    try:
        with storage.files.open(path, "rb") as file:
            data: bytes = file.read(MOST_BYTES + 1)
    except storage.errors as error:
        raise SourceUnavailable(f"manifest {uri}", f"could not be read ({error}); trying again") from error
    if len(data) > MOST_BYTES:
        raise InvalidRequest(f"manifest {uri}", f"has more than {MOST_BYTES} bytes; make several waves")
    return data

"""Reads a manifest that a wave names: completely, over the network, within bounds, in one of a few separate threads.

However slowly a manifest's server answers, it delays other manifests of its namespace before those of others, and
never a pass.
"""

from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from threading import Lock
from typing import Any, TypeVar

from fsspec.asyn import sync

from mint_contracts.backends import backend
from mint_contracts.byte_counts import in_units
from mint_contracts.errors import InvalidRequest, SourceForbidden, SourceUnavailable
from mint_contracts.parquet_process import bounded_rows
from mint_contracts.parquet_rows import entry_lines
from mint_contracts.shared_threads import SharedThreads
from mint_contracts.source import Source, locate
from mint_contracts.storage_errors import described

SCHEMES = ("s3", "gs", "https", "http")  # what the operator can reach; only engines mount claims and images
MOST_BYTES = 4 << 20
PARQUET = ".parquet"
MOST_UNPACKED_BYTES = 8 << 20  # of a Parquet file's columns: its reader takes up to 168 MiB of the operator's memory
UNPACK_S = 30.0
READ_S = 60.0
AT_ONCE = 8  # of one namespace half

T = TypeVar("T")

_threads = SharedThreads(AT_ONCE, "manifest")
_parsing = Lock()  # one at a time: a Parquet file's reader takes memory


async def read_manifest(namespace: str, uri: str, parse: Callable[[str, bytes], T]) -> T:
    """Return what `parse` makes of a manifest, in a thread; waits while the namespace has its share of them.

    Raises as `fetch` and `parse` do.
    """

    def read() -> T:
        data = fetch(uri)
        with _parsing:
            return parse(uri, data)

    return await _threads.run(namespace, read)


def fetch(uri: str) -> bytes:
    """Return the manifest's bytes. Blocks; over HTTP for READ_S at most.

    Raises SourceForbidden, SourceUnavailable, or InvalidRequest for more than MOST_BYTES.
    """
    place = locate(Source(uri=uri))
    if place.scheme not in SCHEMES:
        message = f"is read by the operator, which supports only {', '.join(f'{scheme}://' for scheme in SCHEMES)}"
        raise SourceForbidden(f"manifest {uri}", message)
    storage = backend(place.scheme)
    try:
        if place.scheme in {"http", "https"}:
            data: bytes = sync(storage.files.loop, _from_web, storage.files, uri, timeout=READ_S)
        else:
            with storage.files.open(f"{place.host}/{place.path}", "rb") as file:
                _check_size(uri, getattr(file, "size", None) or 0)
                data = file.read(MOST_BYTES + 1)
    except storage.errors as error:
        why = "the download did not finish in time" if isinstance(error, TimeoutError) else described(error)
        raise SourceUnavailable(f"manifest {uri}", f"could not be read ({why}); retrying") from error
    _check_size(uri, len(data))
    return data


def numbered(uri: str, data: bytes, most: int, things: str, thing: str) -> Iterator[tuple[int, bytes]]:
    """Yield the entries of a manifest of `things` as lines of JSON, with their numbers, without empty ones.

    Raises InvalidRequest if there is none, or more than `most`, and CorruptFile or CapacityExceeded.
    """
    left = most
    for number, line in enumerate(_lines(uri, data), start=1):
        if line.strip():
            if not left:
                raise InvalidRequest(f"manifest {uri}", f"has more than {most} {things}; split it over several waves")
            left -= 1
            yield number, line
    if left == most:
        message = f"has no {things}; write one {thing} per line, or delete the wave"
        raise InvalidRequest(f"manifest {uri}", message)


def _lines(uri: str, data: bytes) -> Iterable[bytes]:
    """Return its entries as lines of JSON, also if it is a Parquet file. Raises CorruptFile or CapacityExceeded."""
    if uri.endswith(PARQUET):
        subject = f"manifest {uri}"
        return entry_lines(subject, bounded_rows(subject, data, MOST_UNPACKED_BYTES, UNPACK_S))
    return data.removeprefix(BOM_UTF8).splitlines()  # Windows editors prepend one


async def _from_web(files: Any, uri: str) -> bytes:
    """Download in one request: fsspec's files make several, and truncate an answer that has no length."""
    session, data = await files.set_session(), bytearray()
    async with session.get(files.encode_url(uri)) as answer:
        answer.raise_for_status()
        _check_size(uri, answer.content_length or 0)
        async for piece in answer.content.iter_any():
            data += piece
            if len(data) > MOST_BYTES:
                break
    return bytes(data)


def _check_size(uri: str, size: int) -> None:
    """Refuse too large a manifest: before reading if the size is known, else by what was read, over the limit."""
    if size > MOST_BYTES:
        message = f"is larger than the limit of {in_units(MOST_BYTES)}; split it over several waves"
        raise InvalidRequest(f"manifest {uri}", message)

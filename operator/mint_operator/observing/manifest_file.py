"""Reading a manifest that a wave names: whole, over the network, within bounds, in one of a few threads of its own.

What a wave names may answer as slowly as it likes. It then keeps other manifests waiting, but never a pass.
"""

import asyncio
import io
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fsspec.asyn import sync

from mint_contracts.backends import backend
from mint_contracts.byte_counts import in_units
from mint_contracts.errors import InvalidRequest, SourceForbidden, SourceUnavailable
from mint_contracts.parquet_rows import entry_lines
from mint_contracts.source import Source, locate

SCHEMES = ("s3", "gs", "https", "http")  # what the operator can reach; claims and images are the engines'
MOST_BYTES = 4 << 20
PARQUET = ".parquet"
MOST_UNPACKED_BYTES = 64 << 20  # of a Parquet file's columns
READ_S = 60.0
AT_ONCE = 4

T = TypeVar("T")

_threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="manifest")


async def in_thread(work: Callable[..., T], *given: Any) -> T:
    """What reading of a manifest blocks for; whoever comes while AT_ONCE are at work has to wait."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *given)


def fetch(uri: str) -> bytes:
    """Its bytes. Blocks, on the web for READ_S at most.

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
        why = str(error) or "the download did not finish in time"
        raise SourceUnavailable(f"manifest {uri}", f"could not be read ({why}); retrying") from error
    _check_size(uri, len(data))
    return data


def lines(uri: str, data: bytes) -> Iterable[bytes]:
    """What it says, a line of JSON each, also of a Parquet file's rows. Raises CorruptFile or CapacityExceeded."""
    if uri.endswith(PARQUET):
        return entry_lines(f"manifest {uri}", io.BytesIO(data), MOST_UNPACKED_BYTES)
    return data.removeprefix(BOM_UTF8).splitlines()  # Windows puts that before a text


async def _from_web(files: Any, uri: str) -> bytes:
    """By one request: fsspec's files take several, and of an answer without a length only what comes first."""
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
    """Before it is read where that is told, and else of what was read, which is one byte more at least."""
    if size > MOST_BYTES:
        message = f"is larger than the limit of {in_units(MOST_BYTES)}; split it over several waves"
        raise InvalidRequest(f"manifest {uri}", message)

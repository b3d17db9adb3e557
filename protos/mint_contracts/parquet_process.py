"""Rows of a Parquet file that a stranger wrote, read in a process of its own with bounds on its memory and its time.

What such a file says of its sizes may be false: 26 kB may unpack to gigabytes, or end the process that decodes them.
Here that ends a child, and is one clear error. `parquet_reading.py` is the child. Blocking.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from threading import Timer
from typing import Any

import msgspec

from mint_contracts.errors import CapacityExceeded, CorruptFile, MintError

_OWN_BYTES = 128 << 20  # of the child before it reads anything, measured: 90 MiB, pyarrow's libraries above all
_UNPACKED_TIMES = 5  # of text columns, measured: their pages, dictionaries and batches, and the growth of each
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")  # of the environment: credentials stay here
_SPARING = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A message of the child: some rows, or the end, which is a refusal unless all were read."""

    rows: tuple[msgspec.Raw, ...] = ()
    ended: bool = False
    too_large: bool = False
    refusal: str = ""


def most_memory(most_bytes: int) -> int:
    """Return the bytes of memory that a child may take for columns of `most_bytes`."""
    return _OWN_BYTES + _UNPACKED_TIMES * most_bytes


def bounded_rows(
    subject: str, content: bytes | bytearray, most_bytes: int, most_s: float
) -> Iterator[dict[str, Any]]:
    """Return the rows as `parquet_rows.rows` gives them, with dates and decimals as JSON has them.

    Copies `content` to where the child reads it, and keeps no reference. Raises, while iterated, CorruptFile or
    CapacityExceeded, also for what cannot be read in `most_memory(most_bytes)` or within `most_s`.
    """
    file = os.memfd_create("parquet")
    with open(file, "wb", closefd=False) as copied:
        copied.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return _rows(subject, file, most_bytes, most_s)


def _rows(subject: str, file: int, most_bytes: int, most_s: float) -> Iterator[dict[str, Any]]:
    with _child(file, most_bytes) as (process, connection):
        late = Timer(most_s, process.send_signal, [signal.SIGXCPU])
        late.daemon = True
        late.start()
        try:
            while not (part := msgspec.msgpack.decode(connection.recv_bytes(), type=Part)).ended:
                for row in part.rows:
                    yield msgspec.msgpack.decode(row)
        except (EOFError, ConnectionError):
            raise _lost(subject, process.wait(), most_bytes, most_s) from None
        finally:
            late.cancel()
    if part.refusal:
        raise (CapacityExceeded if part.too_large else CorruptFile)(subject, part.refusal)


@contextmanager
def _child(file: int, most_bytes: int) -> Iterator[tuple[subprocess.Popen[bytes], Connection]]:
    """Yield a child that reads the file, and its messages; it has ended afterwards, whatever it was doing."""
    ours, theirs = Pipe(duplex=False)
    try:
        end = theirs.fileno()
        numbers = map(str, (end, file, most_bytes, most_memory(most_bytes)))
        command = [sys.executable, "-m", "mint_contracts.parquet_reading", *numbers]
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ} | _SPARING
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(end, file), env=kept)  # noqa: S603
    except OSError:
        ours.close()
        raise
    finally:
        theirs.close()
        os.close(file)
    with ours, process:
        try:
            yield process, ours
        finally:
            process.kill()


def _lost(subject: str, status: int, most_bytes: int, most_s: float) -> MintError:
    if status == -signal.SIGXCPU:
        return CapacityExceeded(subject, f"takes more than {most_s:.0f} s to unpack; split it")
    within = f"within {most_memory(most_bytes) >> 20} MiB"
    return CorruptFile(subject, f"could not be unpacked {within} (its reader ended with {status}); write it anew")

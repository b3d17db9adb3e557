"""The processes of an engine's other ranks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mint_engine.parallel.files import make_files
from mint_engine.parallel.rank import Rank


@contextmanager
def ranks_until(count: int) -> Iterator[list[Rank]]:
    """All of a node's ranks but the first, started but not told anything yet."""
    files = make_files()
    ranks = [Rank(number, files, lambda *_: None) for number in range(1, count)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.hang_up()
            rank.finish(60)
        files.close()


def children(pid: int) -> list[int]:
    """The running child processes of a process."""
    found = list[int]()
    for told in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # of a thread that has ended meanwhile
            found += map(int, told.read_text().split())
    return found


def followers(pid: int = 0) -> list[int]:
    """The ranks that a process (0: this one) has started: its fork server's children."""
    return [rank for server in fork_servers(pid or os.getpid()) for rank in fork_servers(server)]


def fork_servers(pid: int) -> list[int]:
    """A process's children with the fork server's command: its fork servers, or for a fork server, its ranks."""
    return [child for child in children(pid) if b"parallel.fork_server" in _command(child)]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it has ended since it was listed
        return b""

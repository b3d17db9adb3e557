"""JSON schemas of users: checked by a process of its own, which is ended where a check takes too long.

A schema of 2 kB may need hours, by references that double at each step or by a pattern, and `re` lets nobody else run
meanwhile. A thread could not be stopped; a process can, with all that it holds. `checking.py` is its other end.
"""

import json
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from threading import Lock

from mint_contracts.errors import InvalidRequest, MintError, RewardUnavailable

MAX_SCHEMA = 64 << 10  # characters
CHECK_S = 2.0  # of a processor: a reward must not depend on how busy a machine is

_SUBJECT = "reward.jsonSchema"


class Schema:
    """One schema. What it refers to outside of itself is never fetched."""

    def __init__(self, text: str) -> None:
        """Raises InvalidRequest for what is no JSON. Whether it is a schema takes longer: the first check says it."""
        if len(text) > MAX_SCHEMA:
            raise InvalidRequest(_SUBJECT, f"has more than {MAX_SCHEMA} characters")
        try:
            json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(_SUBJECT, f"is no JSON: {error}") from None
        self._text = text

    def accepts(self, text: str) -> bool:
        """Whether a text is one JSON value that the schema accepts. NaN and infinity are no JSON. Blocks its thread.

        Raises InvalidRequest for what is no schema, refers outside of itself or takes too long; RewardUnavailable.
        """
        said = _checker.check(self._text, text)
        if isinstance(said, str):
            raise InvalidRequest(_SUBJECT, said)
        return said


class Checker:
    """The process: started when it is needed and is not there, asked by one thread at a time. It ends with us."""

    def __init__(self) -> None:
        self._turn = Lock()
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def check(self, schema: str, text: str) -> bool | str:
        """Whether the text is accepted, or what is wrong with the schema. Raises as `Schema.accepts` does."""
        with self._turn:
            try:
                process, connection = self._running = self._running or _start()
            except OSError as error:
                raise RewardUnavailable(_SUBJECT, f"can't be checked ({error.strerror}); trying again") from error
            try:
                connection.send_bytes(json.dumps([CHECK_S, schema, text]).encode())
                said: bool | str = json.loads(connection.recv_bytes())
            except (EOFError, ConnectionError):
                self._running = None
                connection.close()
                raise _ended(process.wait(), text) from None
            return said


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    with theirs:
        end = theirs.fileno()
        command = [sys.executable, "-m", "mint_engine.rewards.checking", str(end)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(end,)), ours  # noqa: S603 - our own


def _ended(status: int, text: str) -> MintError:
    if status == -signal.SIGPROF:
        said = f"takes more than {CHECK_S:g} s on {text[:100]!r}; write it with fewer references and repeats"
        return InvalidRequest(_SUBJECT, said)
    return RewardUnavailable(_SUBJECT, f"could not be checked: its process ended with {status}; trying again")


_checker = Checker()

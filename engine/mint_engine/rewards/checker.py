"""Processes that check texts by users' schemas and patterns; a process is killed if a check takes too long.

A schema of 2 kB may take hours, through references that double at each step or through a pattern, and so may a
pattern of 20 characters. A thread cannot be stopped, and `re` holds the GIL meanwhile. `regex` has a timeout, but
measures it by the CPU time of the whole process, so in a busy engine it fires far too early. A separate process can
be killed, with all its memory, by its own CPU time. `checking.py` is its other end.
"""

import json
import signal
import subprocess
import sys
from multiprocessing.connection import Connection, Pipe
from threading import Lock

from mint_contracts.errors import InvalidRequest, MintError, RewardUnavailable

CHECK_S = 2.0  # of CPU time: a reward must not depend on how busy a machine is


class Checker:
    """A checking process, started on demand and used by one thread at a time. It ends with this process."""

    def __init__(self, advice: str) -> None:
        """`advice` tells users what to do about checks that take too long."""
        self._advice = advice
        self._turn = Lock()
        self._running: tuple[subprocess.Popen[bytes], Connection] | None = None

    def check(self, subject: str, kind: str, rule: str, text: str) -> bool:
        """Whether a rule accepts a text; `kind` is one of `checking.KINDS`. Blocks its thread.

        Raises InvalidRequest if the check takes too long or the rule cannot be used; RewardUnavailable.
        """
        with self._turn:
            try:
                process, connection = self._running = self._running or _start()
            except OSError as error:
                raise RewardUnavailable(subject, f"cannot be checked ({error.strerror}); retrying") from error
            try:
                connection.send_bytes(json.dumps([CHECK_S, kind, rule, text]).encode())
                verdict: bool | str = json.loads(connection.recv_bytes())
            except (EOFError, ConnectionError):
                self._running = None
                connection.close()
                raise self._ended(process.wait(), subject, text) from None
        if isinstance(verdict, str):
            raise InvalidRequest(subject, verdict)
        return verdict

    def _ended(self, status: int, subject: str, text: str) -> MintError:
        if status == -signal.SIGPROF:
            return InvalidRequest(subject, f"takes more than {CHECK_S:g} s on {text[:100]!r}; {self._advice}")
        return RewardUnavailable(subject, f"could not be checked: its process ended with {status}; retrying")


def _start() -> tuple[subprocess.Popen[bytes], Connection]:
    ours, theirs = Pipe()
    with theirs:
        end = theirs.fileno()
        command = [sys.executable, "-m", "mint_engine.rewards.checking", str(end)]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(end,)), ours  # noqa: S603 - our own

"""One side of a comparison: a separate process that runs only while it executes a command.

Between commands its whole process group is stopped, so that neither its spinning threads nor its timers disturb the
timing of the other side.
"""

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_TAIL_BYTES = 2000
_END_S = 10.0
_POLL_S = 0.001


class SideFailed(Exception):
    """A side did not start, ended, refused, or did not answer in time; says which, with the end of its log."""


class Side:
    """A measured process that speaks JSON lines (`tests.bench.protocol`). Use as a context manager."""

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        self._unread = b""

    @property
    def pid(self) -> int:
        """The process id; the process leads the group of all processes that it starts."""
        return self._process.pid

    def ask(self, do: str, timeout_s: float = 600.0, **arguments: Any) -> dict[str, Any]:
        """Let the process run, send it a command, wait for its answer, and stop it again. Raises SideFailed."""
        self._signal(signal.SIGCONT)
        try:
            self._write(json.dumps({"do": do, **arguments}))
            answer = json.loads(self._read_line(do, timeout_s))
        finally:
            self._pause()
        if "error" in answer:
            raise SideFailed(f"{self.name}: {do}: {answer['error']}")
        found = answer["ok"]
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        """End the process and everything that it started: ask first, then kill."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(SideFailed):
            while True:  # until it hangs up, which makes _read_line fail
                self._read_line("close", _END_S)
        self._signal(signal.SIGKILL)  # it is reaped only after this, so the group id is still its own
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("has ended") from None

    def _read_line(self, do: str, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise self._failed(f"{do}: no answer in {timeout_s:.0f} s")
            piece = os.read(self._process.stdout.fileno(), 1 << 16)
            if not piece:
                raise self._failed(f"{do}: ended without an answer")
            self._unread += piece
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _pause(self) -> None:
        """Stop the group, and wait until it has stopped. Raises SideFailed if it keeps running."""
        deadline = time.monotonic() + _END_S
        while True:
            self._signal(signal.SIGSTOP)
            if os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                return
            if time.monotonic() > deadline:
                raise self._failed("does not stop")
            time.sleep(_POLL_S)

    def _failed(self, what: str) -> SideFailed:
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - _TAIL_BYTES))
            tail = log.read().decode(errors="replace")
        return SideFailed(f"{self.name}: {what}; the end of {self._log}:\n{tail}")

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended; a waiting reader sees the closed pipe
            os.killpg(self._process.pid, number)

"""Client of the fork server, the process that this one's ranks are forked from.

The server imports what every rank needs (torch and transformers, which takes seconds) once, and holds it in memory
once.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

_END_S = 1.0  # the most time between the end of its connections and that of its process
_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


class ForkedProcess:
    """A process that has been forked, or is about to be. The fork server reports its end on `line`."""

    def __init__(self, line: socket.socket, lost: Callable[[], int]) -> None:
        """`lost` returns the fork server's exit status, in case its end ended this process, too."""
        self._line, self._lost = line, lost
        self.status: int | None = None  # once it has ended, as `Popen.returncode`

    def wait(self) -> int:
        """Wait for its end and return its status. May be called by one thread only."""
        answer = b""
        with suppress(ConnectionError):
            answer = self._line.recv(16)
        self.status = int(answer) if answer else self._lost()
        self._line.close()
        return self.status

    def kill(self) -> None:
        """Have the fork server kill it; `wait` then returns soon."""
        with suppress(OSError):  # it has already ended
            self._line.shutdown(socket.SHUT_WR)


class ForkClient:
    """A running fork server. It ends with this process, and its ranks end with it."""

    def __init__(self) -> None:
        """Start the server from a thread that waits for its end: the kernel kills it when that thread ends."""
        self._control, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ended = threading.Event()
        self._status = -signal.SIGKILL
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def ended(self) -> bool:
        """Whether the server has ended and cannot fork any more."""
        return self._ended.is_set()

    def fork(self, descriptors: Sequence[int]) -> ForkedProcess:
        """Fork a rank with these descriptors, as `follow.follow` takes them. Raises OSError if the server is gone."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                socket.send_fds(self._control, [b"fork"], [*descriptors, theirs.fileno()])
        except OSError:
            ours.close()
            raise
        return ForkedProcess(ours, self._lost)

    def _watch(self) -> None:
        end = self._theirs.fileno()
        command = [sys.executable, "-m", "mint_engine.parallel.fork_server", str(end), str(os.getpid())]
        try:
            with self._theirs:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(end,))  # noqa: S603
            self._status = process.wait()
        finally:
            self._ended.set()
            self._control.close()

    def _lost(self) -> int:
        self._ended.wait(_END_S)
        return self._status


_turn = threading.Lock()
_clients: list[ForkClient] = []


def fork_client() -> ForkClient:
    """Return this process's fork client; start a new one if there is none or it has ended."""
    with _turn:
        if not _clients or _clients[-1].ended:
            _clients[:] = [ForkClient()]
        return _clients[-1]


def die_with(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent has ended for any reason."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os._exit(0)

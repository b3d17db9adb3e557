"""The fork server: the process that a node's ranks are forked from, after it has imported all that they need.

A message over CONTROL brings the next rank's descriptors: its two sockets, the node's two files (see
`follow.follow`), and a line on which the rank's end is reported. A rank is killed when the line's other end is shut,
and all ranks are when their parent ends.

python -m mint_engine.parallel.fork_server CONTROL PARENT    (an inherited descriptor, and the parent's process id)
"""

import os
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from selectors import EVENT_READ
from typing import NoReturn

from mint_contracts.importing import without_collecting
from mint_engine.parallel.fork_client import die_with

_DESCRIPTORS = 5  # received for each rank


@dataclass(frozen=True, eq=False)
class _Child:
    pid: int
    process: int  # a pidfd, readable once the process has ended
    line: socket.socket


def main() -> None:
    """Serve until the other end of CONTROL is closed."""
    control, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for number in (signal.SIGTERM, signal.SIGINT):  # the parent gets the signal, too, and ends everything
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)
    with without_collecting():  # otherwise later collections would write to memory that all ranks share
        from mint_engine.parallel.follow import follow
    ForkServer(control, follow).run()


class ForkServer:
    """Forks children and reports their ends. It has one thread: children would not have the others."""

    def __init__(self, control: socket.socket, follow: Callable[[int, int, int, int, int], NoReturn]) -> None:
        self._control, self._follow = control, follow
        self._heard = selectors.DefaultSelector()
        self._heard.register(control, EVENT_READ)
        self._children = set[_Child]()

    def run(self) -> None:
        """Serve until the other end of `control` is closed."""
        while True:
            for key, _ in self._heard.select():
                if key.fileobj is self._control:
                    message, descriptors, _, _ = socket.recv_fds(self._control, 16, _DESCRIPTORS)
                    if not message:
                        return
                    self._fork(descriptors)
                elif key.data in self._children:  # else its end has just been reported
                    self._tell(key.data, ended=key.fd == key.data.process)

    def _fork(self, descriptors: list[int]) -> None:
        steps, slots, memory, group, line = descriptors
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            try:
                os.close(line)
                self._forget()
                self._follow(steps, slots, memory, group, parent)
            finally:  # the child must not continue with its parent's code
                os._exit(1)
        for descriptor in (steps, slots, memory, group):
            os.close(descriptor)
        child = _Child(pid, os.pidfd_open(pid), socket.socket(fileno=line))
        self._children.add(child)
        self._heard.register(child.process, EVENT_READ, child)
        self._heard.register(child.line, EVENT_READ, child)

    def _tell(self, child: _Child, *, ended: bool) -> None:
        """Report a child's end; if it has not ended, its line was shut: kill it first."""
        if not ended:
            os.kill(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        self._children.remove(child)
        self._heard.unregister(child.process)
        self._heard.unregister(child.line)
        os.close(child.process)
        with child.line, suppress(OSError):  # nobody listens
            child.line.send(str(os.waitstatus_to_exitcode(status)).encode())

    def _forget(self) -> None:
        """In a child: close what belongs only to its parent."""
        for key in list(self._heard.get_map().values()):
            os.close(key.fd)
        self._heard.close()


if __name__ == "__main__":
    main()

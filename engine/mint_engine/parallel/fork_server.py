"""The process that a node's ranks are forked from, once it has imported what they do.

A message over CONTROL brings what the next rank begins with: its two sockets, the node's two files (see
`follow.follow`), and a line on which its end is told. It is killed when the line's other end is shut, and all
are when their parent ends.

python -m mint_engine.parallel.fork_server CONTROL PARENT    (an inherited descriptor, and who has it too)
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

_DESCRIPTORS = 5  # that come for each rank


@dataclass(frozen=True, eq=False)
class _Child:
    pid: int
    process: int  # a descriptor that can be read when it has ended
    line: socket.socket


def main() -> None:
    """Fork until nobody can ask for it any more."""
    control, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    for number in (signal.SIGTERM, signal.SIGINT):  # whoever has started it is told too, and lets all end
        signal.signal(number, signal.SIG_IGN)
    die_with(parent)
    with without_collecting():  # later collections, too, would write to what all have in common
        from mint_engine.parallel.follow import follow
    ForkServer(control, follow).run()


class ForkServer:
    """Which children there are, and what is heard of them. One thread: others would be missing in children."""

    def __init__(self, control: socket.socket, follow: Callable[[int, int, int, int, int], NoReturn]) -> None:
        self._control, self._follow = control, follow
        self._heard = selectors.DefaultSelector()
        self._heard.register(control, EVENT_READ)
        self._children = set[_Child]()

    def run(self) -> None:
        """Until the other end of `control` is closed."""
        while True:
            for key, _ in self._heard.select():
                if key.fileobj is self._control:
                    message, descriptors, _, _ = socket.recv_fds(self._control, 16, _DESCRIPTORS)
                    if not message:
                        return
                    self._fork(descriptors)
                elif key.data in self._children:  # else its end has just been told
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
            finally:  # nothing of this process's parent is for it to go on with
                os._exit(1)
        for descriptor in (steps, slots, memory, group):
            os.close(descriptor)
        child = _Child(pid, os.pidfd_open(pid), socket.socket(fileno=line))
        self._children.add(child)
        self._heard.register(child.process, EVENT_READ, child)
        self._heard.register(child.line, EVENT_READ, child)

    def _tell(self, child: _Child, *, ended: bool) -> None:
        """Tell of its end; of one that nobody waits for any more, after seeing to it."""
        if not ended:
            os.kill(child.pid, signal.SIGKILL)
        _, status = os.waitpid(child.pid, 0)
        self._children.remove(child)
        self._heard.unregister(child.process)
        self._heard.unregister(child.line)
        os.close(child.process)
        with child.line, suppress(OSError):  # nobody wants to know
            child.line.send(str(os.waitstatus_to_exitcode(status)).encode())

    def _forget(self) -> None:
        """In a child: what is its parent's alone."""
        for key in list(self._heard.get_map().values()):
            os.close(key.fd)
        self._heard.close()


if __name__ == "__main__":
    main()

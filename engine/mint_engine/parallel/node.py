"""Another node's ranks, as the leader sees them: one answer for all, over connections that their node has made."""

import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from mint_contracts.errors import EngineUnavailable, MintError
from mint_engine.parallel import messages
from mint_engine.parallel.content import send_content
from mint_engine.parallel.edition import edition
from mint_engine.parallel.greeting import Channel
from mint_engine.parallel.messages import Begin, End, Passes, Refused, SlotChange
from mint_engine.parallel.rank import ANSWER_S, TELL_S, expect_ready, gone

_MAPPED = "::ffff:"  # an IPv4 address as a socket for both kinds has it
_NAME = "node "


def is_of_node(error: MintError) -> bool:
    """Whether another node has told it, of what is there: its files are its own."""
    return error.subject.startswith(_NAME)


class Node:
    """As a `Rank`. Its ranks begin as soon as it has come, and it is waited for like them."""

    def __init__(self, number: int, begin: Begin, on_end: Callable[[str, int], None]) -> None:
        """`on_end` is called, on a thread, when it is gone, once it is watched."""
        self.number, self.name = number, f"{_NAME}{number}"
        self._begin, self._on_end = begin, on_end
        self._entering, self._closed = threading.Lock(), False
        self._connections: dict[Channel, socket.socket] = {}
        self._there = threading.Event()
        self._watcher: threading.Thread | None = None

    def enter(self, channel: Channel, connection: socket.socket) -> bool:
        """The node has connected; False where it is there already, or nobody waits for it any more.

        One that came to nothing before is forgotten.
        """
        with self._entering:
            if self._closed or self._there.is_set():
                return False
            if channel in self._connections:
                self._connections[channel].close()
            connection.settimeout(TELL_S if channel is Channel.STEPS else ANSWER_S)
            self._connections[channel] = connection
            if len(self._connections) == len(Channel):
                with suppress(OSError):  # it is gone again: `expect_ready` tells
                    messages.pass_on(self._connections[Channel.STEPS], edition())
                    messages.send(self._connections[Channel.STEPS], self._begin)
                self._there.set()
            return True

    @property
    def address(self) -> str:
        """This machine's, as the node reaches it."""
        address: str = self._connections[Channel.STEPS].getsockname()[0]
        return address.removeprefix(_MAPPED)

    def tell(self, message: bytes) -> None:
        """See `Rank`."""
        try:
            messages.pass_on(self._connections[Channel.STEPS], message)
        except OSError as error:
            raise gone(self.name) from error

    @property
    def answers(self) -> socket.socket | None:
        """See `Rank`; None while it is not there."""
        return self._connections[Channel.STEPS] if self._there.is_set() else None

    def expect_ready(self, timeout_s: float | None) -> Sequence[Passes]:
        """See `Rank`."""
        deadline = time.monotonic() + timeout_s if timeout_s is not None else math.inf
        if not self._there.wait(timeout_s):
            raise EngineUnavailable(self.name, "of this engine did not connect in time; see its pod")
        return expect_ready(self._connections[Channel.STEPS], self.name, max(1.0, deadline - time.monotonic()))

    def watch(self) -> None:
        """From now on it answers nothing over the connection of steps, and its end is noticed at once."""
        self._watcher = threading.Thread(target=self._await_end, daemon=True)
        self._watcher.start()

    def tell_change(self, change: SlotChange, descriptor: int | None) -> None:
        """See `Rank`; an adapter goes as the content of its file."""
        slots = self._connections[Channel.SLOTS]
        try:
            messages.send(slots, change)
            if descriptor is not None:
                send_content(slots, descriptor)
        except OSError as error:
            raise gone(self.name) from error

    def hear_change(self) -> str:
        """See `Rank`."""
        try:
            answer = messages.decode_answer(messages.receive(self._connections[Channel.SLOTS]))
        except (OSError, EOFError) as error:
            raise gone(self.name) from error
        return answer.problem if isinstance(answer, Refused) else ""

    def dismiss(self) -> None:
        """Nothing has gone wrong on it: its process may stay for the next engine here."""
        steps = self._connections.get(Channel.STEPS)
        if steps is not None:
            with suppress(OSError):
                messages.send(steps, End())

    def hang_up(self) -> None:
        """See `Rank`: all of its ranks end then."""
        with self._entering:
            self._closed = True
        for connection in self._connections.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def finish(self, timeout_s: float) -> None:
        """Its processes are for its own pod to end."""
        if self._watcher is not None:
            self._watcher.join(timeout_s)
        for connection in self._connections.values():
            connection.close()

    def _await_end(self) -> None:
        steps = self._connections[Channel.STEPS]
        while True:
            try:
                if not steps.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        self._on_end(self.name, 0)

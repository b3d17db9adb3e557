"""The leader's view of another node's ranks: one answer for all, over the connections that the node has opened."""

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
from mint_engine.parallel.handshake import Channel
from mint_engine.parallel.messages import Begin, End, Passes, Refused, SlotChange
from mint_engine.parallel.rank import ANSWER_S, TELL_S, expect_ready, gone

_MAPPED = "::ffff:"  # prefix of an IPv4 address on a dual-stack socket
_NAME = "node "


def is_of_node(error: MintError) -> bool:
    """Whether another node reported this error, about its own files."""
    return error.subject.startswith(_NAME)


class Node:
    """Another node, with the interface of a `Rank`. Its ranks begin to load as soon as it has connected."""

    def __init__(self, number: int, begin: Begin, on_end: Callable[[str, int], None]) -> None:
        """`on_end` is called, on a thread, when the node is gone; only after `watch`."""
        self.number, self.name = number, f"{_NAME}{number}"
        self._begin, self._on_end = begin, on_end
        self._entering, self._closed = threading.Lock(), False
        self._connections: dict[Channel, socket.socket] = {}
        self._accepted: dict[Channel, int] = {}  # the number of each of them
        self._there = threading.Event()
        self._watcher: threading.Thread | None = None

    def enter(self, channel: Channel, connection: socket.socket, number: int) -> bool:
        """Take a connection of the node; return False if the node is complete already or no longer wanted.

        An earlier, incomplete attempt is dropped, even if it is greeted later: `number` grows with each connection
        that is accepted.
        """
        with self._entering:
            if self._closed or self._there.is_set() or number < self._accepted.get(channel, number):
                return False
            if channel in self._connections:
                self._connections[channel].close()
            connection.settimeout(TELL_S if channel is Channel.STEPS else ANSWER_S)
            self._connections[channel], self._accepted[channel] = connection, number
            if len(self._connections) == len(Channel):
                with suppress(OSError):  # it is gone again: `expect_ready` raises that
                    messages.pass_on(self._connections[Channel.STEPS], edition())
                    messages.send(self._connections[Channel.STEPS], self._begin)
                self._there.set()
            return True

    @property
    def address(self) -> str:
        """This machine's address, as the node reaches it."""
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
        """See `Rank`; None until it has connected."""
        return self._connections[Channel.STEPS] if self._there.is_set() else None

    def expect_ready(self, timeout_s: float | None) -> Sequence[Passes]:
        """See `Rank`."""
        deadline = time.monotonic() + timeout_s if timeout_s is not None else math.inf
        if not self._there.wait(timeout_s):
            raise EngineUnavailable(self.name, "of this engine did not connect in time; see its pod")
        return expect_ready(self._connections[Channel.STEPS], self.name, max(1.0, deadline - time.monotonic()))

    def watch(self) -> None:
        """Notice the node's end at once from now on; nothing may be read from the connection of steps any more."""
        self._watcher = threading.Thread(target=self._await_end, daemon=True)
        self._watcher.start()

    def tell_change(self, change: SlotChange, descriptor: int | None) -> None:
        """See `Rank`; an adapter is sent as the content of its file."""
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
        """End an engine in good order: the node's process may stay for the next attempt of this leader."""
        steps = self._connections.get(Channel.STEPS)
        if steps is not None:
            with suppress(OSError):
                messages.send(steps, End())

    def hang_up(self) -> None:
        """See `Rank`; all of the node's ranks end then."""
        with self._entering:
            self._closed = True
        for connection in self._connections.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def finish(self, timeout_s: float) -> None:
        """Close the connections; the node's own pod ends its processes."""
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

"""A rank of this node, as who has started it sees it: a process, and two sockets to it.

A thread waits for it, so that its end is known at once. The kernel ends it when this process ends in whatever way
(see `fork_client`).
"""

import signal
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

from mint_contracts.errors import EngineUnavailable, MintError, UnsupportedBase, by_reason
from mint_engine.parallel import messages
from mint_engine.parallel.files import Files
from mint_engine.parallel.fork_client import ForkedProcess, fork_client
from mint_engine.parallel.messages import Passes, Refused, SlotChange

START_S = 1800.0  # that it takes to load a base at most: a large one comes from a disk
ANSWER_S = 60.0  # that it takes to put an adapter in its slot
TELL_S = 60.0  # that it leaves a message unread
_END_S = 1.0  # between the end of its connections and that of its process


class Rank:
    """Who has started it tells it steps in one thread, and changes of slots in any, one after another."""

    def __init__(self, number: int, files: Files, on_end: Callable[[str, int], None]) -> None:
        """Start it. It hears nothing before the fork server has imported what it needs, for seconds, the first time.

        `on_end` is called once, on a thread, with its name and status when it has ended.
        """
        self.number, self.name = number, f"rank {number}"
        self._steps, steps = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._slots, slots = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._slots.settimeout(ANSWER_S)
        self._steps.settimeout(TELL_S)
        self._process: ForkedProcess | None = None
        self._on_end = on_end
        self._thread = threading.Thread(target=self._watch, args=(steps, slots, files), daemon=True)
        self._thread.start()

    def tell(self, message: bytes) -> None:
        """Raises EngineUnavailable where it has ended, or reads nothing."""
        try:
            messages.pass_on(self._steps, message)
        except OSError as error:
            raise gone(self.name) from error

    def expect_ready(self, timeout_s: float | None) -> Sequence[Passes]:
        """What it tells. Raises what it says, or EngineUnavailable; None: it takes as long as it takes."""
        return expect_ready(self._steps, self.name, timeout_s, self._how_ended)

    @property
    def answers(self) -> socket.socket:
        """Where its answers come in."""
        return self._steps

    def tell_change(self, change: SlotChange, descriptor: int | None) -> None:
        """Raises EngineUnavailable."""
        try:
            socket.send_fds(self._slots, [messages.encode(change)], [] if descriptor is None else [descriptor])
        except OSError as error:
            raise gone(self.name) from error

    def hear_change(self) -> str:
        """What went wrong with the latest change; "" where nothing did. Raises EngineUnavailable."""
        try:
            data = self._slots.recv(1 << 16)
        except OSError as error:
            raise gone(self.name) from error
        if not data:
            raise gone(self.name)
        answer = messages.decode_answer(data)
        return answer.problem if isinstance(answer, Refused) else ""

    def hang_up(self) -> None:
        """It ends when nobody tells it anything any more."""
        for end in (self._steps, self._slots):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def finish(self, timeout_s: float) -> None:
        """Wait for its end, and force it where it takes too long."""
        self._thread.join(timeout_s)
        if self._process is not None and self._thread.is_alive():
            self._process.kill()
            self._thread.join(timeout_s)
        for end in (self._steps, self._slots):
            end.close()

    def _watch(self, steps: socket.socket, slots: socket.socket, files: Files) -> None:
        """Start it, and stay until it has ended."""
        try:
            self._process = fork_client().fork((steps.fileno(), slots.fileno(), files.memory, files.group))
        finally:
            steps.close()
            slots.close()
        self._on_end(self.name, self._process.wait())

    def _how_ended(self) -> str:
        """In words; "" where it has not, or was never there."""
        self._thread.join(_END_S)
        status = self._process.status if self._process is not None else None
        if status is None:
            return ""
        if status == -signal.SIGKILL:
            return "it was killed, probably for lack of memory"
        return f"by signal {-status}" if status < 0 else f"with status {status}; see the log"


def expect_ready(
    steps: socket.socket, name: str, timeout_s: float | None, how_ended: Callable[[], str] = str
) -> Sequence[Passes]:
    """What the next answer over a connection tells. Raises the error that it tells of, or EngineUnavailable."""
    steps.settimeout(timeout_s)
    try:
        answer: messages.Answer = messages.decode_answer(messages.receive(steps))
    except (OSError, EOFError) as error:
        raise gone(name, how_ended()) from error
    finally:
        steps.settimeout(TELL_S)
    if isinstance(answer, Refused):
        raise (by_reason(answer.reason) or UnsupportedBase)(name, answer.problem)
    return answer.passes


def refusal(error: MintError) -> Refused:
    """How an error is told."""
    return Refused(str(error), error.reason)


def gone(name: str, how: str = "") -> EngineUnavailable:
    """Of a rank or node that does not answer; of one that has ended, `how` where that is known."""
    problem = f"has ended ({how})" if how else "has ended or does not answer"
    return EngineUnavailable(name, f"of this engine {problem}; retry")

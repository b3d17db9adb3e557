"""A rank of this node, as seen by the process that started it: a process, and two sockets to it.

A thread waits for it, so that its end is known at once. The kernel kills it when this process ends for any reason
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

START_S = 1800.0  # limit for loading a base: a large one comes from a disk
ANSWER_S = 60.0  # limit for putting an adapter in its slot
LAUNCH_S = ANSWER_S / 2  # of which for launching earlier steps: a rank must refuse while its starter still listens
TELL_S = 60.0  # limit for leaving a message unread
_END_S = 1.0  # the most time between the end of its connections and that of its process


class Rank:
    """A rank's process. Its starter sends steps from one thread, and slot changes from any, one after another."""

    def __init__(self, number: int, files: Files, on_end: Callable[[str, int], None]) -> None:
        """Start it. The first time, it reads nothing until the fork server has done its imports, for seconds.

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
        """Send an encoded message. Raises EngineUnavailable if the rank has ended or does not read."""
        try:
            messages.pass_on(self._steps, message)
        except OSError as error:
            raise gone(self.name) from error

    def expect_ready(self, timeout_s: float | None) -> Sequence[Passes]:
        """Wait for its answer and return its passes. Raises the error that it reports, or EngineUnavailable.

        `timeout_s` None: without a limit.
        """
        return expect_ready(self._steps, self.name, timeout_s, self._how_ended)

    @property
    def answers(self) -> socket.socket:
        """The socket that its answers arrive on."""
        return self._steps

    def tell_change(self, change: SlotChange, descriptor: int | None) -> None:
        """Send a slot change, with an adapter's file if any. Raises EngineUnavailable."""
        try:
            socket.send_fds(self._slots, [messages.encode(change)], [] if descriptor is None else [descriptor])
        except OSError as error:
            raise gone(self.name) from error

    def hear_change(self) -> str:
        """Wait for the answer to the latest change; return what went wrong, or "". Raises EngineUnavailable."""
        try:
            data = self._slots.recv(1 << 16)
        except OSError as error:
            raise gone(self.name) from error
        if not data:
            raise gone(self.name)
        answer = messages.decode_answer(data)
        return answer.problem if isinstance(answer, Refused) else ""

    def hang_up(self) -> None:
        """Shut its sockets down, which makes it end."""
        for end in (self._steps, self._slots):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def finish(self, timeout_s: float) -> None:
        """Wait for its end, and kill it if that takes longer than `timeout_s`."""
        self._thread.join(timeout_s)
        if self._process is not None and self._thread.is_alive():
            self._process.kill()
            self._thread.join(timeout_s)
        for end in (self._steps, self._slots):
            end.close()

    def _watch(self, steps: socket.socket, slots: socket.socket, files: Files) -> None:
        """Start it, and wait until it has ended."""
        try:
            self._process = fork_client().fork((steps.fileno(), slots.fileno(), files.memory, files.group))
        finally:
            steps.close()
            slots.close()
        self._on_end(self.name, self._process.wait())

    def _how_ended(self) -> str:
        """Describe how it ended; "" if it has not, or never began."""
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
    """Wait for the next answer and return its passes. Raises the error that it reports, or EngineUnavailable."""
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
    """Return the message that reports an error."""
    return Refused(str(error), error.reason)


def gone(name: str, how: str = "") -> EngineUnavailable:
    """Return the error for a rank or node that does not answer, or that has ended, with `how` if known."""
    problem = f"has ended ({how})" if how else "has ended or does not answer"
    return EngineUnavailable(name, f"of this engine {problem}; retry")

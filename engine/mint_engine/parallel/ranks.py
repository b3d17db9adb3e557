"""Rank 0's other ranks: starts them, tells them of every step and slot, and notices when one ends.

Each is a child process. A thread waits for it, so that its end is known at once; and because that thread has started
it, the kernel ends the child when this process ends in whatever way (see `follow.die_with`).
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog

from mint_contracts.errors import EngineUnavailable, SourceUnavailable, UnsupportedBase
from mint_contracts.settings import EngineSettings
from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.model.paged import Span
from mint_engine.parallel import messages
from mint_engine.parallel.member import Member, extent_of, join
from mint_engine.parallel.messages import Begin, Clear, Lesson, Load, Meet, Ready, Refused, SlotChange, Wipe
from mint_engine.parallel.peers import Files, Peers, make_files

START_S = 1800.0  # that a rank takes to load a base at most: a large one comes from a disk
ANSWER_S = 60.0  # that it takes to put an adapter in its slot
TELL_S = 60.0  # that it leaves a message unread
_END_S = 5.0
_NO_DIGEST = "0" * 64

_log = structlog.get_logger(__name__)


class Ranks:
    """All ranks but this one. `tell*` belong to the step thread; `load` and `clear` may be called on any."""

    def __init__(
        self, settings: EngineSettings, base: Path, rows: int, threads: int, on_end: Callable[[], None]
    ) -> None:
        """Start them; each begins to load its share. `on_end` is called, on a thread, when they can not go on."""
        self._rows, self._threads, self._on_end = rows, threads, on_end
        self._files = make_files()
        self._peers: Peers | None = None
        self._met = self._closing = False
        self._lost = threading.Event()
        self._changing = threading.Lock()
        count = settings.tensor_parallel_size
        self._others = [_Rank(number, self._files, self._ended) for number in range(1, count)]
        for other in self._others:
            other.tell(Begin(settings, str(base), other.number, count, rows, threads))

    @property
    def lost(self) -> bool:
        """Whether one has ended by itself: the engine can not go on."""
        return self._lost.is_set() or (self._peers is not None and self._peers.broken)

    def meet(self, member: Member, *, lean: bool) -> Peers:
        """Wait until all have loaded their shares, and meet them. Raises UnsupportedBase or EngineUnavailable."""
        for other in self._others:
            other.expect_ready(START_S)
        nbytes = extent_of(member, self._rows, self._threads).nbytes
        os.ftruncate(self._files.memory, nbytes)
        if member.base.device.type == "cpu":
            os.ftruncate(self._files.group, nbytes)
        self._peers = join(member, self._files, self._rows, self._threads)
        for other in self._others:
            other.tell(Meet(lean))
        for other in self._others:
            other.expect_ready(START_S)
        self._met = True
        if self._lost.is_set():
            self.end()
        return self._peers

    def tell_step(self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> None:
        """Have all compute a step; whoever calls computes its own share right after."""
        step = messages.step_of(tokens, spans, keep)
        for other in self._others:
            other.tell(step)

    def tell_wipe(self, pages: Sequence[int]) -> None:
        """Have all zero pages of the cache before their next step."""
        for other in self._others:
            other.tell(Wipe(pages))

    def tell_lesson(self, lesson: Lesson) -> None:
        """Have all do their part of an update; whoever calls does its own right after."""
        for other in self._others:
            other.tell(lesson)

    @contextmanager
    def load(self, slot: int, packed: Packed) -> Iterator[None]:
        """Have all put an adapter into their slot meanwhile (see `residency.slots.Others`)."""
        subject = f"revision {packed.revision}"
        with self._change(Load(slot, subject), packed) as problems:
            yield
        if problems:
            raise SourceUnavailable(subject, f"could not be read by every rank ({problems[0]}); retrying")

    @contextmanager
    def clear(self, slot: int) -> Iterator[None]:
        """Have all clear their slot meanwhile."""
        with self._change(Clear(slot), None) as problems:
            yield
        if problems:
            raise EngineUnavailable("engine", f"could not clear a slot on every rank ({problems[0]})")

    def end(self) -> None:
        """Nothing that is computed from now on is worth anything: nobody must wait for anybody."""
        if self._peers is not None:
            self._peers.end()
        self._lost.set()
        if not self._closing:
            self._on_end()

    def close(self) -> None:
        """End them, and wait for that within a bound."""
        self._closing = True
        if self._peers is not None:
            self._peers.end()
        for other in self._others:
            other.hang_up()
        for other in self._others:
            other.finish(_END_S)
        with suppress(OSError):
            self._files.close()

    @contextmanager
    def _change(self, change: SlotChange, packed: Packed | None) -> Iterator[list[str]]:
        problems: list[str] = []
        with self._changing, _opened(packed) as descriptor:
            try:
                for other in self._others:
                    other.tell_change(change, descriptor)
                try:
                    yield problems
                finally:  # each answers, also where it went wrong here
                    problems += filter(None, [other.hear_change() for other in self._others])
            except EngineUnavailable:
                self.end()  # their slots are not what this rank's are
                raise

    def _ended(self, rank: int, status: int) -> None:
        if self._closing:
            return
        _log.error("rank_ended", rank=rank, status=status)
        self._lost.set()
        if self._met:  # before that `meet` raises what can be told, and tried again
            self.end()


class _Rank:
    """One child process and the sockets to it."""

    def __init__(self, number: int, files: Files, on_end: Callable[[int, int], None]) -> None:
        self.number = number
        self._steps, steps = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._slots, slots = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._slots.settimeout(ANSWER_S)
        self._steps.settimeout(TELL_S)
        self._process: subprocess.Popen[bytes] | None = None
        self._on_end = on_end
        self._thread = threading.Thread(target=self._watch, args=(steps, slots, files), daemon=True)
        self._thread.start()

    def tell(self, message: messages.Told) -> None:
        """Raises EngineUnavailable where it has ended, or reads nothing."""
        try:
            messages.send(self._steps, message)
        except OSError as error:
            raise self._gone() from error

    def expect_ready(self, timeout_s: float) -> None:
        """Raises UnsupportedBase with what it says, or EngineUnavailable."""
        self._steps.settimeout(timeout_s)
        try:
            answer = messages.receive_answer(self._steps)
        except (OSError, EOFError) as error:
            raise self._gone() from error
        finally:
            self._steps.settimeout(TELL_S)
        if isinstance(answer, Refused):
            raise UnsupportedBase(f"rank {self.number}", answer.problem)

    def tell_change(self, change: SlotChange, descriptor: int | None) -> None:
        """Raises EngineUnavailable."""
        try:
            socket.send_fds(self._slots, [messages.encode(change)], [] if descriptor is None else [descriptor])
        except OSError as error:
            raise self._gone() from error

    def hear_change(self) -> str:
        """What went wrong with the latest change; "" where nothing did."""
        try:
            data = self._slots.recv(1 << 16)
        except OSError as error:
            raise self._gone() from error
        if not data:
            raise self._gone()
        answer = msgspec.msgpack.decode(data, type=Ready | Refused)
        return answer.problem if isinstance(answer, Refused) else ""

    def hang_up(self) -> None:
        """It ends when nobody tells it anything any more."""
        for end in (self._steps, self._slots):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def finish(self, timeout_s: float) -> None:
        """Wait for its end, and force it where it takes too long."""
        self._thread.join(timeout_s)
        if self._process is not None and self._thread.is_alive():
            self._process.kill()
            self._thread.join(timeout_s)

    def _watch(self, steps: socket.socket, slots: socket.socket, files: Files) -> None:
        """Start it, and stay until it has ended."""
        inherited = (steps.fileno(), slots.fileno(), files.memory, files.group)
        command = [sys.executable, "-m", "mint_engine.parallel.follow", *map(str, (*inherited, os.getpid()))]
        try:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=inherited)  # noqa: S603
        finally:
            steps.close()
            slots.close()
        self._on_end(self.number, self._process.wait())

    def _gone(self) -> EngineUnavailable:
        return EngineUnavailable(f"rank {self.number}", "of this engine has ended or does not answer; ask again")


@contextmanager
def _opened(packed: Packed | None) -> Iterator[int | None]:
    """A descriptor of a file of the packed adapter: its own, or one in memory where it has none."""
    if packed is None:
        yield None
        return
    if packed.file is not None:
        with packed.file.open() as descriptor:
            if descriptor is not None:
                yield descriptor
                return
    # The weights that a policy hands off have no digest: the other ranks trust what they get from here.
    header = replace(packed.header, digest=packed.header.digest or _NO_DIGEST)
    with os.fdopen(os.memfd_create("mint-adapter"), "wb") as file:
        packed_file.write(Packed(header, packed.run.to("cpu", header.dtype)), file)
        file.flush()
        yield file.fileno()

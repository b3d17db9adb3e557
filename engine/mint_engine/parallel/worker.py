"""The worker on a node other than the leader's: starts this node's ranks, and passes rank 0's messages on to them.

It connects to the leader (`node_listener`) and begins on its message, again whenever the leader starts over. A worker
that cannot load its base stays connected and reports why. But when ranks have met and one of them, or the leader, is
lost, the engine cannot continue: this process ends, and the engine's pods restart together.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import msgspec
import structlog

from mint_contracts.backoff import delay_s
from mint_contracts.errors import (
    CorruptFile,
    EngineUnavailable,
    Internal,
    MintError,
    SourceUnavailable,
    UnsupportedBase,
    WrongBase,
)
from mint_contracts.settings import EngineSettings
from mint_engine.environment import Start
from mint_engine.parallel import messages
from mint_engine.parallel.content import not_kept, receive_content
from mint_engine.parallel.edition import edition
from mint_engine.parallel.files import make_files
from mint_engine.parallel.handshake import AuthenticationFailed, Channel, Hello, authenticate
from mint_engine.parallel.messages import Begin, End, Load, Meet, Ready, Refused, SlotChange
from mint_engine.parallel.rank import Rank, refusal
from mint_engine.parallel.readiness import Readiness
from mint_engine.sources.base_digest import base_digest
from mint_engine.sources.fetch_base import drop_base, drop_stale, fetch_base

FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 5.0
RECHECK_S = 30.0  # a refused base is checked again, as on the leader: its source may have been repaired
CONNECT_S = 10.0
CONTENT_S = 60.0  # the longest silence while an adapter is received
_END_S = 5.0
ENDED, DEFECT = 0, 1  # exit codes
_END = messages.encode(messages.End())
_OTHER_CODE = UnsupportedBase(
    "code", "of this node's image differs from its leader's; give all pods of an engine the same image"
)

_log = structlog.get_logger(__name__)


class _Life:
    """The state of this process that decides when a signal may end it."""

    def __init__(self) -> None:
        self.met = threading.Event()  # all ranks of the engine have met
        self._asked = threading.Event()

    def begin(self) -> None:
        """Handle SIGTERM and SIGINT. While requests may be in flight, wait for the leader, whose pod ends as well."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._ask())

    def part(self) -> None:
        """Note that the leader no longer needs these ranks; end if a signal came meanwhile."""
        self.met.clear()
        if self._asked.is_set():
            os._exit(ENDED)

    def _ask(self) -> None:
        self._asked.set()
        if not self.met.is_set():
            os._exit(ENDED)


def run(start: Start) -> int:
    """Run until the leader is lost, or SIGTERM; return the exit code."""
    life, own, attempt = _Life(), OwnBase(start), 0
    life.begin()
    while True:
        attempt += 1
        try:
            _serve(start, own, life.met)
            life.part()
        except (OSError, EOFError, AuthenticationFailed) as error:
            _log.info("leader_away", leader=start.leader, why=str(error) or type(error).__name__)
            if life.met.is_set():
                return ENDED
        except EngineUnavailable as error:  # a rank of this node
            _log.error("rank_lost", error=str(error))
            return DEFECT
        time.sleep(delay_s(attempt, first_s=FIRST_RETRY_S, cap_s=LONGEST_RETRY_S))


class OwnBase:
    """This node's own copy of the base."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._found: Path | MintError = Internal("base", "has not been looked for yet")
        self._again_at = 0.0
        self._disputed = ""  # the digest of the different base that a leader had

    def find(self) -> Path | MintError:
        """Return its path, or why there is none. A refused source is not tried again at every connection."""
        if time.monotonic() >= self._again_at:
            self._found = find_base(self._start)
            if isinstance(self._found, MintError):
                wait_s = RECHECK_S if self._found.terminal else 0.0
                self._again_at = time.monotonic() + wait_s
                _log.warning("base_refused", reason=self._found.reason, error=str(self._found), again_in_s=wait_s)
        return self._found

    def dispute(self, digest: str) -> None:
        """Note that the leader has a different base, from an earlier or later state of the source.

        Delete the copy if it is known to be stale, or if the leader reports the same digest again.
        """
        source, cache = self._start.settings.source, self._start.cache
        with suppress(MintError):  # a source that does not answer cannot be copied from either
            if not drop_stale(source, cache) or digest == self._disputed:
                drop_base(source, cache)
        self._disputed = digest


def _serve(start: Start, own: OwnBase, met: threading.Event) -> None:
    """Connect to the leader and serve it until it ends in order. Raises OSError, EOFError or AuthenticationFailed."""
    base = own.find()  # while the leader looks for its own
    with _connected(start, Channel.STEPS) as steps, _connected(start, Channel.SLOTS) as slots:
        if messages.receive(steps) != edition():  # messages of a different edition cannot be decoded
            _refuse(start, steps, _OTHER_CODE)
            while messages.receive(steps) != _END:
                pass
            return
        begin = messages.decode_command(messages.receive(steps))
        assert isinstance(begin, Begin)  # noqa: S101 - the protocol, see `Node`
        _log.info("beginning", leader=start.leader, node=start.node, ranks=start.settings.ranks_per_node)
        refused = base if isinstance(base, MintError) else _unlike(start, begin, base)
        if isinstance(refused, WrongBase):
            own.dispute(begin.digest)
        if refused is not None:
            _refuse(start, steps, refused)
            messages.receive(steps)  # `End`, or the end of the connection: nothing else comes
        elif isinstance(base, Path):
            with _ranks(start.settings, begin, base, met) as ranks:
                _follow(start, steps, slots, ranks, met)


def find_base(start: Start) -> Path | MintError:
    """Return this node's own copy, or why there is none."""
    source = start.settings.source
    try:
        return fetch_base(source, start.cache, partial(_look, start.settings))
    except OSError as error:
        return SourceUnavailable(f"base {source.uri}", f"cannot be read ({error}); retrying")
    except MintError as error:
        return error
    except Exception as defect:  # noqa: BLE001 - the leader must report it, while this process stays up
        _log.exception("base_defect")
        return Internal(f"base {source.uri!r}", f"could not be loaded ({type(defect).__name__}); see the log")


def _look(settings: EngineSettings, folder: Path, subject: str) -> None:
    """Check a base as the leader does, so that no node copies what the leader refuses.

    GPUs are left to the ranks: this process would keep some memory of any that it looks at.
    """
    from mint_engine.preflight import (
        check_small_files,
    )  # imports torch, which nothing else here needs; ranks have their own

    check_small_files(settings, folder, subject, rank=None)


def _unlike(start: Start, begin: Begin, base: Path) -> MintError | None:
    """Return why this node's share would not be of the leader's base, or None."""
    if begin.settings != start.settings:
        return UnsupportedBase(
            "settings", "of this node differ from its leader's; their pods were not created together"
        )
    try:
        same = base_digest(base) == begin.digest
    except SourceUnavailable as error:
        return error
    subject = f"base {start.settings.source.uri}"
    return None if same else WrongBase(subject, "differs between this node and the leader; give both the same files")


def _refuse(start: Start, steps: socket.socket, error: MintError) -> None:
    """Report an error to the leader, which may have hung up meanwhile; delete a corrupt copy, to be made again."""
    _log.warning("base_refused", reason=error.reason, error=str(error))
    if isinstance(error, CorruptFile):
        drop_base(start.settings.source, start.cache)
    with suppress(OSError):
        messages.send(steps, refusal(error))


@contextmanager
def _connected(start: Start, channel: Channel) -> Iterator[socket.socket]:
    assert start.endpoint is not None  # noqa: S101 - set for an engine over several nodes
    with socket.create_connection((start.leader, start.endpoint.port), CONNECT_S) as connection:
        authenticate(connection, start.endpoint.key, Hello(start.node, channel))
        try:
            yield connection
        finally:
            with suppress(OSError):  # threads that read from it must notice
                connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def _ranks(settings: EngineSettings, begin: Begin, base: Path, met: threading.Event) -> Iterator[list[Rank]]:
    """Start this node's ranks, which load their shares. A rank that ends after all have met ends this process."""
    closing = threading.Event()

    def on_end(name: str, status: int) -> None:
        if not closing.is_set():
            _log.error("rank_ended", who=name, status=status)
            if met.is_set():  # before that, its missing answer shows it
                os._exit(DEFECT)

    files, ranks = make_files(), list[Rank]()
    try:
        for number in range(begin.rank, begin.rank + settings.ranks_per_node):
            ranks.append(rank := Rank(number, files, on_end))
            rank.tell(messages.encode(msgspec.structs.replace(begin, base=str(base), rank=rank.number)))
        yield ranks
    finally:
        closing.set()
        for rank in ranks:
            rank.hang_up()
        for rank in ranks:
            rank.finish(_END_S)
        files.close()


def _follow(
    start: Start, steps: socket.socket, slots: socket.socket, ranks: list[Rank], met: threading.Event
) -> None:
    """Pass messages on until the leader ends in good order. Raises EOFError or OSError when it is lost."""
    _in_background(_answer, start, steps, ranks)
    meet = messages.decode_command(messages.receive(steps))
    if isinstance(meet, End):
        return
    assert isinstance(meet, Meet) and meet.wire is not None  # noqa: S101, PT018
    wire = msgspec.structs.replace(meet.wire, host=steps.getpeername()[0], address=steps.getsockname()[0])
    _tell(ranks, messages.encode(msgspec.structs.replace(meet, wire=wire)))
    _in_background(_answer, start, steps, ranks)
    _in_background(_follow_slots, slots, ranks)
    while (message := messages.receive(steps)) != _END:
        met.set()
        _tell(ranks, message)


def _in_background(do: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=do, args=arguments, daemon=True).start()


def _tell(ranks: list[Rank], message: bytes) -> None:
    for rank in ranks:
        rank.tell(message)


def _answer(start: Start, steps: socket.socket, ranks: list[Rank]) -> None:
    """Send all ranks' answers as one. The leader sets the time limit, as it reads more than these ranks do."""
    try:
        passes = Readiness(ranks).hear_all(None)
    except MintError as error:
        _refuse(start, steps, error)
    else:
        with suppress(OSError):
            messages.send(steps, Ready(tuple(passes)))


def _follow_slots(slots: socket.socket, ranks: list[Rank]) -> None:
    """Have ranks change their slots, and answer each change with Ready or with what went wrong on any rank."""
    try:
        while True:
            slots.settimeout(None)
            change = messages.decode_change(messages.receive(slots))
            slots.settimeout(CONTENT_S)
            problem = _change(slots, ranks, change)
            messages.send(slots, Refused(problem) if problem else Ready())
    except (OSError, EOFError) as error:  # the leader is gone, or will hang up when no answer comes
        _log.info("slots_ended", why=str(error) or type(error).__name__)
        slots.close()
    except EngineUnavailable as error:
        _log.error("slots_lost", error=str(error))
        os._exit(DEFECT)


def _change(slots: socket.socket, ranks: list[Rank], change: SlotChange) -> str:
    with _received(slots, change) as (descriptor, problem):
        if problem:
            return problem
        for rank in ranks:
            rank.tell_change(change, descriptor)
        return next(filter(None, [rank.hear_change() for rank in ranks]), "")


@contextmanager
def _received(slots: socket.socket, change: SlotChange) -> Iterator[tuple[int | None, str]]:
    """Yield a file with the adapter that follows a change, and what went wrong. Raises as `exactly` does."""
    if not isinstance(change, Load):
        yield None, ""
        return
    with ExitStack() as stack:
        try:
            file = _receive(slots, change.subject, stack)
        except (CorruptFile, SourceUnavailable) as error:
            _log.warning("adapter_not_received", error=str(error))
            yield None, str(error)
        else:
            yield file, ""


def _receive(slots: socket.socket, subject: str, stack: ExitStack) -> int:
    """Receive an adapter into a new file. Read all of it even if there can be no file: the next change follows."""
    try:
        stack.callback(os.close, file := os.memfd_create("mint-adapter"))
    except OSError as error:
        receive_content(slots, None, subject)
        raise not_kept(subject, error) from error
    receive_content(slots, file, subject)
    return file

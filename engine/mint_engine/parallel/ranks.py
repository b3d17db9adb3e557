"""The other ranks, as rank 0 sees them: sends them every step and slot change, and notices when one ends.

Ranks of its own node are children (`rank`); those of another node get messages through their node (`node`), which
connects to this one.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import structlog
from torch._C._distributed_c10d import TCPStore

from mint_contracts.errors import EngineUnavailable, SourceUnavailable
from mint_contracts.settings import EngineSettings
from mint_engine.adapters import packed_file
from mint_engine.adapters.digests import UNKNOWN
from mint_engine.adapters.packed import Packed
from mint_engine.model.span import Span
from mint_engine.parallel import messages
from mint_engine.parallel.files import make_files
from mint_engine.parallel.handshake import RanksEndpoint
from mint_engine.parallel.member import Member, extent_of, join
from mint_engine.parallel.messages import (
    Begin,
    Clear,
    Command,
    Lesson,
    Load,
    Meet,
    Passes,
    SlotChange,
    Wipe,
    Wire,
)
from mint_engine.parallel.node import Node
from mint_engine.parallel.node_listener import NodeListener
from mint_engine.parallel.passes import check_alike, least_room
from mint_engine.parallel.peers import Peers
from mint_engine.parallel.processor import processor_of
from mint_engine.parallel.rank import START_S, Rank
from mint_engine.parallel.readiness import Readiness
from mint_engine.parallel.steps import step_of
from mint_engine.residency.reading import is_readable
from mint_engine.sources.base_digest import base_digest

_END_S = 5.0  # for all of them
_LEAST_S = 1.0  # for each

_log = structlog.get_logger(__name__)


class Ranks:
    """All ranks but this one. `step` and `tell*` belong to the step thread, and any thread may `load` and `clear`."""

    def __init__(
        self,
        settings: EngineSettings,
        base: Path,
        rows: int,
        threads: int,
        on_end: Callable[[], None],
        endpoint: RanksEndpoint | None,
    ) -> None:
        """Start them: each begins to load its share, those of other nodes once these have come to the `endpoint`.

        `on_end` is called, on a thread, when they cannot continue. Raises EngineUnavailable if it cannot listen.
        """
        self._rows, self._threads, self._on_end = rows, threads, on_end
        self._peers: Peers | None = None
        self._passes: Sequence[Passes] = ()
        self._store: TCPStore | None = None
        self._met = self._closing = False
        self._lost = threading.Event()
        self._changing = threading.Lock()
        self._steps = 0  # that this rank has launched
        count, each = settings.tensor_parallel_size, settings.ranks_per_node
        digest = base_digest(base) if settings.nodes > 1 else ""
        own = processor_of(settings, 0) if settings.nodes > 1 else ""
        begins = [Begin(settings, str(base), digest, rank, count, rows, threads, own) for rank in range(count)]
        self._nodes = [Node(number, begins[number * each], self._ended) for number in range(1, settings.nodes)]
        self._others: list[Rank | Node] = list(self._nodes)
        self._listener: NodeListener | None = None
        self._files = make_files()
        try:
            self._listener = _listen(endpoint, self._nodes) if self._nodes else None
            for begin in begins[1:each]:
                self._others.append(rank := Rank(begin.rank, self._files, self._ended))
                with suppress(EngineUnavailable):  # `meet` raises it, when all can be closed
                    rank.tell(messages.encode(begin))
        except BaseException:  # the next attempt listens on the same port, and starts other ranks
            self.close()
            raise
        self._loading = Readiness(self._others)

    @property
    def lost(self) -> bool:
        """Whether one has ended by itself: the engine cannot continue."""
        return self._lost.is_set() or (self._peers is not None and self._peers.broken)

    def listen(self) -> None:
        """Raise the error that keeps any of them from loading its share, if one is known; does not wait."""
        self._loading.listen()

    def meet(self, member: Member, *, lean: bool) -> Peers:
        """Wait until all have loaded their shares, and meet them. Raises their errors, or EngineUnavailable."""
        self._loading.hear_all(START_S)
        self._stop_listening()
        wire = self._lay_wire() if self._nodes else None
        if wire is None:
            nbytes = extent_of(member, self._rows, self._threads).nbytes
            os.ftruncate(self._files.memory, nbytes)
            if member.base.device.type == "cpu":
                os.ftruncate(self._files.group, nbytes)
        self._peers = join(member, self._files, self._rows, self._threads, wire)
        self._tell(Meet(lean, wire))
        self._passes = Readiness(self._others).hear_all(START_S)
        for node in self._nodes:
            node.watch()
        self._met = True
        if self._lost.is_set():
            self.end()
        return self._peers

    @property
    def room(self) -> int | None:
        """Bytes that the fullest of their GPUs has left for updates; None on CPUs."""
        return least_room(self._passes)

    def check_serving(self, own: str) -> None:
        """Raise UnsupportedBase if another rank serves by another kind of pass than this one's."""
        check_alike("serves", own, {each.rank: each.serving for each in self._passes})

    def check_training(self, own: str) -> None:
        """Raise UnsupportedBase if another rank trains by another kind of pass than this one's."""
        check_alike("trains", own, {each.rank: each.training for each in self._passes})

    @contextmanager
    def step(self, tokens: Sequence[int], spans: Sequence[Span], keep: Sequence[int]) -> Iterator[None]:
        """Have all compute a step; the caller computes its own share during the block."""
        self._tell(step_of(tokens, spans, keep))
        yield
        self._steps += 1

    def tell_wipe(self, pages: Sequence[int]) -> None:
        """Have all zero pages of the cache before their next step."""
        self._tell(Wipe(pages))

    def tell_lesson(self, lesson: Lesson) -> None:
        """Have all do their part of an update; the caller does its own right after."""
        self._tell(lesson)

    @contextmanager
    def load(self, slot: int, packed: Packed) -> Iterator[None]:
        """Have all put an adapter into their slot during the block (see `residency.slots.Others`)."""
        subject = f"revision {packed.revision}"
        with self._change(Load(slot, subject, self._steps), packed) as problems:
            yield
        if problems:
            raise SourceUnavailable(subject, f"could not be read by every rank ({problems[0]}); retrying")

    @contextmanager
    def clear(self, slot: int) -> Iterator[None]:
        """Have all clear their slot during the block."""
        with self._change(Clear(slot, self._steps), None) as problems:
            yield
        if problems:
            raise EngineUnavailable("engine", f"could not clear a slot on every rank ({problems[0]})")

    def end(self) -> None:
        """End all waiting between ranks: no result from now on is valid."""
        if self._peers is not None:
            self._peers.end()
        if self._nodes:  # a rank that waits for another node does not look at shared memory
            for other in self._others:
                other.hang_up()
        self._lost.set()
        if not self._closing:
            self._on_end()

    def close(self) -> None:
        """End them, and wait for that for a limited time."""
        self._closing = True
        if self._peers is not None:
            self._peers.end()
        self._stop_listening()
        if not self._lost.is_set():
            for node in self._nodes:
                node.dismiss()
        for other in self._others:
            other.hang_up()
        until = time.monotonic() + _END_S
        for other in self._others:
            other.finish(max(_LEAST_S, until - time.monotonic()))
        self._store = None
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
                finally:  # each answers, even if the change failed here
                    problems += filter(None, [other.hear_change() for other in self._others])
            except EngineUnavailable:
                self.end()  # their slots differ from this rank's
                raise

    def _tell(self, message: Command) -> None:
        data = messages.encode(message)
        for other in self._others:
            other.tell(data)

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _lay_wire(self) -> Wire:
        """Create the store where all ranks find each other, once all nodes have connected."""
        self._store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        return Wire("localhost", self._store.port, secrets.token_hex(16), self._nodes[0].address)

    def _ended(self, name: str, status: int) -> None:
        if self._closing:
            return
        _log.error("rank_ended", who=name, status=status)
        self._lost.set()
        if self._met:  # before that, `meet` raises an error, and loading can be tried again
            self.end()


def _listen(endpoint: RanksEndpoint | None, nodes: Sequence[Node]) -> NodeListener:
    if endpoint is None:
        raise EngineUnavailable("engine", "has several nodes, but no port for them to connect to")
    try:
        return NodeListener(endpoint, nodes)
    except OSError as error:
        raise EngineUnavailable(
            "engine", f"cannot listen for its other nodes on port {endpoint.port} ({error})"
        ) from error


@contextmanager
def _opened(packed: Packed | None) -> Iterator[int | None]:
    """Yield a descriptor of a packed adapter's file: its own, or a copy in memory if it has none that can be read.

    Pinned memory has it complete even if the disk has lost a block since; and sending must not fail halfway.
    """
    if packed is None:
        yield None
        return
    if packed.file is not None:
        with packed.file.open() as descriptor:
            if descriptor is not None and is_readable(descriptor, packed.header.file_bytes):
                yield descriptor
                return
    with ExitStack() as stack:
        try:
            stack.callback(os.close, file := os.memfd_create("mint-adapter"))
            # The weights that a policy hands off have no digest: the other ranks trust what this rank sends.
            header = replace(packed.header, digest=packed.header.digest or UNKNOWN)
            packed_file.write_at_once(Packed(header, packed.run.cpu()), file)
        except OSError as error:
            subject = f"revision {packed.revision}"
            raise SourceUnavailable(subject, f"could not be sent to the other ranks ({error}); retrying") from error
        yield file

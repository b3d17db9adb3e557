"""A rank other than rank 0: loads its share of the base, then runs the steps it is sent until the sender is gone.

The sender is rank 0 itself, or on another node its `worker`, which passes rank 0's messages on.
"""

import os
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

import structlog
import torch
from transformers import PreTrainedConfig
from transformers.utils import logging as transformers_logging

from mint_contracts.errors import EngineUnavailable, Internal, MintError, UnsupportedBase
from mint_contracts.logs import log_as_json
from mint_engine.adapters.mapped import Opener
from mint_engine.garbage import freeze_garbage
from mint_engine.model.base import empty_model, load_base
from mint_engine.model.device import HOST, choose_device, choose_dtype
from mint_engine.model.device_memory import full_gpu
from mint_engine.model.experts import route_shape
from mint_engine.model.files import first_line
from mint_engine.model.forward import Pass, choose_pass
from mint_engine.parallel import messages
from mint_engine.parallel.files import Files
from mint_engine.parallel.fork_client import die_with
from mint_engine.parallel.member import Member, join, lay_member
from mint_engine.parallel.messages import Begin, End, Load, Meet, Passes, Ready, Refused, SlotChange, Step, Wipe
from mint_engine.parallel.part import Part
from mint_engine.parallel.peers import Peers
from mint_engine.parallel.processor import processor_of
from mint_engine.parallel.rank import LAUNCH_S, refusal
from mint_engine.parallel.steps import spans_of
from mint_engine.preflight import check_config
from mint_engine.residency.policy_device import room_on
from mint_engine.residency.slots import Slots
from mint_engine.training.follower import Follower

T = TypeVar("T")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Ends:
    """The sockets and files inherited from the process that started this rank."""

    steps: socket.socket
    slots: socket.socket
    files: Files


def follow(steps: int, slots: int, memory: int, group: int, parent: int) -> NoReturn:
    """Run this process, forked by `parent` after all imports, with these descriptors; never returns.

    It ends with status 0 when the other end is closed, with 1 after a defect.
    """
    die_with(parent)
    log_as_json()
    ends = _Ends(socket.socket(fileno=steps), socket.socket(fileno=slots), Files(memory, group))
    try:
        _live(ends)
    except (EOFError, ConnectionError):
        pass
    except EngineUnavailable as error:  # another rank has ended; the process that started that one reports it
        _log.error("rank_lost", error=str(error))
        os._exit(1)
    except BaseException:  # noqa: BLE001 - logged here: others see only this process's exit status
        _log.exception("rank_defect")
        os._exit(1)
    os._exit(0)  # the thread of slots may still wait for a message that never comes


def _live(ends: _Ends) -> None:
    begin = messages.decode_command(messages.receive(ends.steps))
    assert isinstance(begin, Begin)  # noqa: S101 - the protocol, see `ranks`
    member = _answer(ends.steps, begin, lambda: _load(begin))
    if member is None:
        return
    meet = messages.decode_command(messages.receive(ends.steps))
    assert isinstance(meet, Meet)  # noqa: S101
    peers = join(member, ends.files, begin.rows, begin.threads, meet.wire)
    work = _answer(ends.steps, begin, lambda: _choose(member, begin, peers, lean=meet.lean), lambda work: work.passes)
    if work is None:
        return
    freeze_garbage()  # all ranks wait while one collects
    threading.Thread(target=_follow_slots, args=(ends.slots, member.slots, work.launched), daemon=True).start()
    _follow_steps(ends.steps, work, peers)


def _answer(
    steps: socket.socket, begin: Begin, do: Callable[[], T], tell: Callable[[T], Sequence[Passes]] = lambda _: ()
) -> T | None:
    """Run `do`, answer Ready with what `tell` returns, and return its result; on an error answer Refused instead."""
    try:
        found = do()
    except MintError as error:
        messages.send(steps, refusal(error))
    except torch.OutOfMemoryError as error:
        messages.send(steps, refusal(full_gpu(begin.settings, begin.rank, first_line(error))))
    except Exception as defect:  # noqa: BLE001 - without an answer rank 0 would see no reason not to try again
        _log.exception("rank_defect")
        message = f"could not be loaded ({type(defect).__name__}); see the log"
        messages.send(steps, refusal(Internal(f"base {begin.settings.source.uri!r}", message)))
    else:
        messages.send(steps, Ready(tuple(tell(found))))
        return found
    return None


def _load(begin: Begin) -> Member:
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(begin.threads)
    settings = begin.settings
    device = choose_device(settings.device, begin.rank % settings.ranks_per_node)
    part = Part(begin.rank, begin.count, settings.target_modules, device)
    keep = settings.quantised_experts
    admit = partial(_admit, begin)
    base = load_base(Path(begin.base), choose_dtype(settings.dtype), HOST, part, admit, quantised_experts=keep)
    return lay_member(settings, base, part, device)


def _admit(begin: Begin, config: PreTrainedConfig, subject: str) -> None:
    """Raise CapacityExceeded if the rank's GPU has too little memory: rank 0 only sees its own.

    Raise UnsupportedBase if a base's ranks would choose by numbers that their processors round differently. Each rank
    chooses experts, and tokens to attend to, by itself; if two differ, an expert counts twice or not at all.
    """
    if begin.settings.device != "cpu":
        check_config(begin.settings, config, subject, begin.rank)
    if not begin.processor or begin.processor == (own := processor_of(begin.settings, begin.rank)):
        return
    model = empty_model(config, subject)
    if route_shape(model) is None and not any(path.endswith(".indexer") for path, _ in model.named_modules()):
        return
    raise UnsupportedBase(
        subject,
        f"needs ranks that choose the same experts or tokens, but this one computes on {own} and the leader on "
        f"{begin.processor}, which round differently; give the engine nodes of one kind (spec.engine.nodeSelector)",
    )


class _Launched:
    """Counts the steps that this rank has launched: on a CPU, computed. Slot changes wait for them."""

    def __init__(self) -> None:
        self._count, self._changed = 0, threading.Condition()

    def add(self) -> None:
        """Count one more."""
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> bool:
        """Wait until there are `count`, for LAUNCH_S at most; return whether there are."""
        with self._changed:
            return self._changed.wait_for(lambda: self._count >= count, LAUNCH_S)


@dataclass(frozen=True)
class _Work:
    """The parts of this rank that carry out commands."""

    member: Member
    serving: Pass
    training: Follower | None
    launched: _Launched = field(default_factory=_Launched)

    @property
    def passes(self) -> Sequence[Passes]:
        """The passes that it computes with."""
        training = self.training.compute if self.training is not None else ""
        device = self.member.base.device
        room = room_on(device) if device.type == "cuda" else None
        return [Passes(self.member.share.rank, self.serving.name, training, room)]

    def do(self, command: messages.Command) -> None:
        """Carry out a command. Raises any error."""
        if isinstance(command, Wipe):
            self.member.cache.wipe(command.pages)
        elif isinstance(command, Step):
            with torch.inference_mode():
                self.serving.run(command.tokens, spans_of(command), command.keep)
            self.launched.add()
        elif self.training is not None and not isinstance(command, Begin | Meet | End):
            self.training.do(command)


def _choose(member: Member, begin: Begin, peers: Peers, *, lean: bool) -> _Work:
    follower = None
    if begin.settings.training_store is not None:  # as the first rank's trainer, before serving swaps modules
        follower = Follower(member.base, member.slots.modules, peers.group)
    return _Work(member, choose_pass(member.base, member.slots, member.cache, peers=peers, lean=lean), follower)


def _follow_steps(steps: socket.socket, work: _Work, peers: Peers) -> None:
    while True:
        command = messages.decode_command(messages.receive(steps))
        try:
            work.do(command)
        except BaseException:
            peers.end()  # nobody must wait for this rank
            raise


def _follow_slots(changes: socket.socket, slots: Slots, launched: _Launched) -> None:
    """Carry out and answer each change, with Ready or with what went wrong. After a defect this rank ends."""
    opener = Opener()
    try:
        while True:
            data, descriptors, _, _ = socket.recv_fds(changes, 1 << 16, 1)
            if not data:  # the sender is gone, and so are the ranks that this one may be waiting for
                os._exit(0)
            problem = _change(messages.decode_change(data), descriptors, slots, launched, opener)
            changes.sendall(messages.encode(Refused(problem) if problem else Ready()))
    except ConnectionError:  # rank 0 is gone
        return
    except Exception:  # noqa: BLE001 - as in `follow`: rank 0 would wait for an answer
        _log.exception("rank_defect")
        os._exit(1)


def _change(change: SlotChange, descriptors: Sequence[int], slots: Slots, launched: _Launched, opener: Opener) -> str:
    """Change a slot, after the steps that may read its tenant; return what went wrong, or ""."""
    try:
        if not launched.wait_for(change.after):
            return f"a rank has not launched step {change.after} within {LAUNCH_S:.0f} s"
        if isinstance(change, Load):
            path = Path(f"/proc/self/fd/{descriptors[0]}")
            opener.trust(path)  # rank 0 has checked it
            slots.load(change.slot, opener.open(path, change.subject))
        else:
            slots.clear(change.slot)
    except (MintError, OSError) as error:
        return str(error)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return ""

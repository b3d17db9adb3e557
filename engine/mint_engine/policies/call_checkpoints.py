"""Checkpoints of policies of calls: those that a program asks for, and what an engine that is told to end leaves.

<store>/policies/<policy>/calls/<lease>-<sequence>      as `checkpoints` has them
"""

import asyncio
from contextlib import suppress
from typing import NamedTuple

import msgspec

from mint_contracts.errors import MintError, PolicyNotFound, SourceForbidden, StaleLease
from mint_engine.aside import aside
from mint_engine.policies import revisions
from mint_engine.policies.call_context import CallContext
from mint_engine.policies.calls import Calls
from mint_engine.policies.checkpoints import Record, Shelf, digest_of
from mint_engine.policies.copying import copying
from mint_engine.policies.resting import Rests
from mint_engine.policies.series import Name
from mint_engine.policies.store import Store
from mint_engine.sources.asking import asked
from mint_engine.training import state
from mint_engine.training.policy import Policy

RUN = "calls"  # stands for a wave's run in the names of checkpoints
KEPT = 16  # checkpoints of a policy
LEASE_S = 5.0  # that a new policy waits to hear of others of its name


class Found(NamedTuple):
    """What a policy can go on from: its newest whole checkpoint."""

    policy: Policy
    record: Record
    newest_record: Record | None  # what the newest one, whole or not, held before that was read


def shelf_of(store: Store, policy: str) -> Shelf:
    """A policy's checkpoints."""
    return Shelf(store, policy, RUN, KEPT)


async def save(here: CallContext, policy: str, calls: Calls, sequence: int, *, left: bool = False) -> str:
    """Write a checkpoint, which is durable when this returns: its URI."""
    shelf, name = shelf_of(here.store, policy), Name(calls.lease, sequence)
    async with here.copying(calls):
        copy = await here.training.step_thread.parts(lambda trainer: copying(trainer, policy))
        blob = await aside(state.to_bytes, copy)
        del copy  # beside its bytes it would be in memory for as long as the store takes
        record = Record(
            policy=policy,
            wave="",
            lease=name.lease,
            step=name.step,
            digest=await aside(digest_of, blob),
            run=RUN,
            size=len(blob),
            sequence=sequence,
            life=calls.life,
            taken=calls.step,
            left=left,
        )
        await aside(shelf.save, record, blob)
    return _folder(here.store, shelf) + str(name)


async def leave(here: CallContext, policy: str, calls: Calls) -> None:
    """Write a checkpoint of a policy as it is, which its engine lets go of, for any to go on with."""
    await save(here, policy, calls, calls.sequence, left=True)
    rests = Rests(policy, calls.life, calls.sequence, calls.step)
    with suppress(MintError):  # or it is merely not listed
        await aside(here.resting.note, rests)


async def stay(here: CallContext, policy: str, calls: Calls) -> None:
    """What could not be let go of is its engine's still: nobody goes on with what `leave` has written.

    Raises StaleLease where another engine has gone on with that already.
    """
    record = await asked(shelf_of(here.store, policy).newest_record)
    if record is not None and record.left and record.lease == calls.lease:
        await _retell(here, policy, record, left=False)


async def refuse_superseded(here: CallContext, policy: str, calls: Calls) -> None:
    """Raise StaleLease where another engine has gone on with the policy; and the errors of a store."""
    latest = await asked(shelf_of(here.store, policy).latest_lease)
    if latest > calls.lease:
        raise _stale(policy, latest, calls)


async def load(here: CallContext, policy: str, calls: Calls, uri: str) -> Policy:
    """What `save` has written to that URI. Raises SourceForbidden for any other, and as `Shelf.read`.

    And StaleLease for what was saved under a newer lease, whose engine has the policy.
    """
    shelf = shelf_of(here.store, policy)
    folder = _folder(here.store, shelf)
    if not uri.startswith(folder):
        raise SourceForbidden(
            f"policy {policy!r}", "can only load its own states; give a uri that SaveState returned"
        )
    name = uri.removeprefix(folder)
    blob = await asked(shelf.read, name)
    if (of := Name.read(name)) is not None and of.lease > calls.lease:
        raise _stale(policy, of.lease, calls)
    return await _read(here, policy, blob)


async def newest(here: CallContext, policy: str, life: int) -> Found:
    """The newest checkpoint, which where `life` is given (not 0) must be what an engine has left of that one.

    Raises PolicyNotFound where there is none such.
    """
    shelf = shelf_of(here.store, policy)
    newest_record = await asked(shelf.newest_record)
    found = await asked(shelf.newest)
    if found is None:
        raise PolicyNotFound(f"policy {policy!r}", "has no saved state to resume from; create it")
    record, blob = found
    if life and not (record.left and record.life == life):
        raise not_left(policy, life)
    return Found(await _read(here, policy, blob), record, newest_record)


async def latest_lease(here: CallContext, policy: str) -> int:
    """Under which a policy of that name has saved or published; 0: none has, or the store does not say in time."""
    with suppress(MintError, TimeoutError):
        async with asyncio.timeout(LEASE_S):
            saved, published = shelf_of(here.store, policy).latest_lease, revisions.latest_lease
            return await asked(lambda: max(saved(), published(here.store, policy)))
    return 0


async def give_up(here: CallContext, policy: str, life: int) -> None:
    """What an engine has left of a policy that is dropped comes back to nobody.

    Of this `life` or an earlier one, whose name that has taken; 0 stands for the latest.
    """
    record = await asked(shelf_of(here.store, policy).newest_record)
    if record is not None and record.left and (not life or record.life <= life):
        with suppress(StaleLease):  # nor can anybody take up what lies behind a newer lease
            await _retell(here, policy, record, left=False)


async def succeed(here: CallContext, policy: str) -> None:
    """A new policy has the name: what an engine has left of an earlier one is not listed beside it."""
    with suppress(MintError, TimeoutError):
        async with asyncio.timeout(LEASE_S):
            record = await asked(shelf_of(here.store, policy).newest_record)
            if record is not None and record.left:
                await aside(here.resting.forget, rests_of(record))


async def _retell(here: CallContext, policy: str, record: Record, *, left: bool) -> None:
    """What is listed was left, whenever somebody looks."""
    if not left:
        await aside(here.resting.forget, rests_of(record))
    await aside(shelf_of(here.store, policy).retell, msgspec.structs.replace(record, left=left))
    if left:
        await aside(here.resting.note, rests_of(record))


def not_left(policy: str, life: int) -> PolicyNotFound:
    """That a policy is not to be gone on with by a program that does not know what it has lost."""
    reason = f"of life {life} is not what its engine saved on shutdown; resume it by name alone, or create it"
    return PolicyNotFound(f"policy {policy!r}", reason)


def _stale(policy: str, lease: int, calls: Calls) -> StaleLease:
    return StaleLease(f"policy {policy!r}", f"is now trained under lease {lease}, not {calls.lease}")


def rests_of(record: Record) -> Rests:
    """What is listed of a policy that was left."""
    return Rests(record.policy, record.life, record.sequence, record.taken)


async def _read(here: CallContext, policy: str, blob: bytes) -> Policy:
    return await here.training.step_thread.make(lambda maker: maker.read(policy, blob))


def _folder(store: Store, shelf: Shelf) -> str:
    return f"{store.source.uri.rstrip('/')}/{shelf.folder}/"

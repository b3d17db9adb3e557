"""Checkpoints of Trainer API policies: those that clients ask for, and those that an engine leaves as it lets go.

<store>/policies/<policy>/calls/<lease>-<sequence>      in the format of `checkpoints`

What an engine leaves after call n has the number n + 1: a SaveState of that number may have been written although it
failed, and nobody could resume that.
"""

import asyncio
from contextlib import suppress
from typing import NamedTuple

import msgspec

from mint_contracts.errors import MintError, PolicyNotFound, SourceForbidden, StaleLease
from mint_engine.background_threads import run_in_background
from mint_engine.policies.calls.call_context import CallContext
from mint_engine.policies.calls.calls import Calls
from mint_engine.policies.stored import revisions
from mint_engine.policies.stored.checkpoints import Checkpoints, Record, digest_of
from mint_engine.policies.stored.resting import RestingPolicy
from mint_engine.policies.stored.series import Name, superseded
from mint_engine.policies.stored.store import Store
from mint_engine.policies.updates.copying import copying
from mint_engine.sources.blocking import run_blocking
from mint_engine.training import state
from mint_engine.training.policy import Policy

RUN = "calls"  # takes the place of a wave's run in checkpoint names
KEPT = 16  # checkpoints per policy
LEASE_S = 5.0  # that a new policy waits for the store to report earlier leases of its name


class Found(NamedTuple):
    """What a policy can be resumed from: its newest complete checkpoint."""

    policy: Policy
    record: Record
    newest_record: Record | None  # of the newest checkpoint, complete or not, as of before the read


def checkpoints_of(store: Store, policy: str) -> Checkpoints:
    """Return a policy's checkpoints."""
    return Checkpoints(store, policy, RUN, KEPT)


async def save(here: CallContext, policy: str, calls: Calls, sequence: int, *, resumable: bool = False) -> str:
    """Write a checkpoint and return its URI; it is durable when this returns."""
    checkpoints, name = checkpoints_of(here.store, policy), Name(calls.lease, sequence + resumable)
    async with here.copying(calls):
        copy = await here.training.step_thread.parts(lambda trainer: copying(trainer, policy))
        blob = await run_in_background(state.to_bytes, copy)
        del copy  # do not keep it in memory beside its bytes while the store writes
        record = Record(
            policy=policy,
            wave="",
            lease=name.lease,
            step=name.step,
            digest=await run_in_background(digest_of, blob),
            run=RUN,
            size=len(blob),
            numbers=state.numbers_in(blob),
            sequence=sequence,
            life=calls.life,
            optimizer_steps=calls.step,
            resumable=resumable,
        )
        await run_in_background(checkpoints.save, record, blob)
    return _folder(here.store, checkpoints) + str(name)


async def leave(here: CallContext, policy: str, calls: Calls) -> None:
    """Write a checkpoint of a policy that this engine lets go of, so that any engine can resume it."""
    await save(here, policy, calls, calls.sequence, resumable=True)
    resting = RestingPolicy(policy, calls.life, calls.sequence, calls.step)
    with suppress(MintError):  # then it is only missing from the list of resting policies
        await run_in_background(here.resting.note, resting)


async def revert_leave(here: CallContext, policy: str, calls: Calls) -> None:
    """Revert `leave` for a policy that stays on this engine after all: nobody may resume what it wrote.

    Raises StaleLease if another engine has already resumed it.
    """
    record = await run_blocking(checkpoints_of(here.store, policy).newest_record)
    if record is not None and record.resumable and record.lease == calls.lease:
        await _withdraw(here, policy, record)


async def refuse_superseded(here: CallContext, policy: str, calls: Calls) -> None:
    """Raise StaleLease if another engine has resumed the policy; also raises a store's errors."""
    latest = await run_blocking(checkpoints_of(here.store, policy).series.latest_lease)
    if latest > calls.lease:
        raise superseded(policy, latest, calls.lease)


async def room_to_load(here: CallContext, uri: str, saved_by: str) -> int:
    """Return the bytes that `load` takes for a while; 0 if the store does not say.

    As for a policy's copies (`Needs`), these are its numbers twice, once in the file, whose head does not count.
    """
    checkpoints = checkpoints_of(here.store, saved_by)
    return 2 * await run_blocking(checkpoints.numbers, uri.removeprefix(_folder(here.store, checkpoints)))


async def load(here: CallContext, policy: str, calls: Calls, uri: str, saved_by: str) -> Policy:
    """Return the policy that `save` wrote to `uri` for the policy `saved_by`, as a state of this one.

    Raises SourceForbidden for a URI that is not that policy's, StaleLease for one of this policy's that was saved
    under a newer lease, whose engine now has the policy, and as `Checkpoints.read`.
    """
    checkpoints = checkpoints_of(here.store, saved_by)
    folder = _folder(here.store, checkpoints)
    if not uri.startswith(folder):
        reason = f"can only load a state of policy {saved_by!r}; give a uri that its SaveState returned"
        if saved_by == policy:
            reason = "can only load its own states; give a uri that SaveState returned, or name the other policy"
            reason += " as saved_by"
        raise SourceForbidden(f"policy {policy!r}", reason)
    name = uri.removeprefix(folder)
    blob = await run_blocking(checkpoints.read, name)
    of = Name.read(name)
    if saved_by == policy and of is not None and of.lease > calls.lease:
        raise superseded(policy, of.lease, calls.lease)
    return await _read(here, policy, blob)


async def newest(here: CallContext, policy: str, life: int) -> Found:
    """Return the newest checkpoint; if `life` is given (not 0), it must be what an engine left of that life.

    Raises PolicyNotFound if there is none.
    """
    checkpoints = checkpoints_of(here.store, policy)
    newest_record = await run_blocking(checkpoints.newest_record)
    found = await run_blocking(checkpoints.newest)
    if found is None:
        raise PolicyNotFound(f"policy {policy!r}", "has no saved state to resume from; create it")
    record, blob = found
    if life and not (record.resumable and record.life == life):
        raise not_resumable(policy, life)
    return Found(await _read(here, policy, blob), record, newest_record)


async def latest_lease(here: CallContext, policy: str) -> int:
    """Return the latest lease that saved or published this policy; 0 if none did or the store does not say."""
    with suppress(MintError, TimeoutError):
        async with asyncio.timeout(LEASE_S):
            saved, published = checkpoints_of(here.store, policy).series.latest_lease, revisions.latest_lease
            return await run_blocking(lambda: max(saved(), published(here.store, policy)))
    return 0


async def give_up(here: CallContext, policy: str, life: int) -> bool:
    """Mark what an engine left of a dropped policy as no longer resumable; return whether it was.

    This covers `life` and earlier lives of the name; 0 stands for the latest.
    """
    record = await run_blocking(checkpoints_of(here.store, policy).newest_record)
    if record is None or not record.resumable or 0 < life < record.life:
        return False
    with suppress(StaleLease):  # what a newer lease has superseded cannot be resumed anyway
        await _withdraw(here, policy, record)
    return True


async def forget_predecessor(here: CallContext, policy: str) -> None:
    """Remove an earlier policy of this name from the resting list, since a new one now has the name."""
    with suppress(MintError, TimeoutError):
        async with asyncio.timeout(LEASE_S):
            record = await run_blocking(checkpoints_of(here.store, policy).newest_record)
            if record is not None and record.resumable:
                await run_in_background(here.resting.forget, resting_policy_of(record))


async def _withdraw(here: CallContext, policy: str, record: Record) -> None:
    """Let nobody resume the policy, in an order that never lists one whose record says that nobody may."""
    await run_in_background(here.resting.forget, resting_policy_of(record))
    replaced = msgspec.structs.replace(record, resumable=False)
    await run_in_background(checkpoints_of(here.store, policy).replace_record, replaced)


def not_resumable(policy: str, life: int) -> PolicyNotFound:
    """Return the error for a client that would resume a policy without knowing what was lost."""
    reason = f"of life {life} is not what its engine saved on shutdown; resume it by name alone, or create it"
    return PolicyNotFound(f"policy {policy!r}", reason)


def resting_policy_of(record: Record) -> RestingPolicy:
    """Return the entry of a left policy in the resting list."""
    return RestingPolicy(record.policy, record.life, record.sequence, record.optimizer_steps)


async def _read(here: CallContext, policy: str, blob: bytes) -> Policy:
    return await here.training.step_thread.make(lambda maker: maker.read(policy, blob))


def _folder(store: Store, checkpoints: Checkpoints) -> str:
    return f"{store.source.uri.rstrip('/')}/{checkpoints.folder}/"

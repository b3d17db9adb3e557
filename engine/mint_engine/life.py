"""One request's life in the engine: hold the adapter, run, and let go only when no step refers to its slot."""

import asyncio

import msgspec

from mint_contracts.errors import MintError
from mint_engine.holding import Holder
from mint_engine.request import Done, Event, Failed, Request, Sampling
from mint_engine.slots import NO_SLOT
from mint_engine.stepper import Stepper


class Asked(msgspec.Struct, frozen=True):
    """A request that passed every check which needs no adapter."""

    request_id: str
    adapter: str  # "" asks the bare base
    prompt: tuple[int, ...]
    sampling: Sampling


class Begun(msgspec.Struct, frozen=True):
    """The request has its adapter, at this revision, and is queued."""

    revision: str


Inbox = asyncio.Queue[Begun | Event]  # bounded by the request's own max_tokens


async def live(asked: Asked, holder: Holder, stepper: Stepper, inbox: Inbox) -> None:
    """Put Begun and the request's events into `inbox`; the last is Done or Failed.

    A cancelled life ends the request, and lasts until the step thread has let go of it.
    """
    try:
        if not asked.adapter:
            await _run(asked, "", NO_SLOT, stepper, inbox)
            return
        async with holder.hold(asked.adapter) as held:
            await _run(asked, held.revision, held.slot, stepper, inbox)
    except MintError as error:
        inbox.put_nowait(Failed(error))


async def _run(asked: Asked, revision: str, slot: int, stepper: Stepper, inbox: Inbox) -> None:
    ended = asyncio.Event()

    def sink(event: Event) -> None:
        inbox.put_nowait(event)
        if isinstance(event, Done | Failed):
            ended.set()

    request = Request(
        request_id=asked.request_id,
        prompt=asked.prompt,
        sampling=asked.sampling,
        adapter=asked.adapter,
        revision=revision,
        slot=slot,
    )
    sequence = stepper.submit(request, sink)
    inbox.put_nowait(Begun(revision))
    try:
        await ended.wait()
    except asyncio.CancelledError:
        stepper.cancel(sequence)
        await ended.wait()  # a step in progress may still read the slot
        raise

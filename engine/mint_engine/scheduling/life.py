"""One request's life in the engine: hold the adapter, run, and release it only when no step refers to its slot."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import msgspec
import structlog

from mint_contracts.errors import Internal, MintError
from mint_engine.model.device import compute_alone
from mint_engine.requests.events import Done, Event, Failed, Sink
from mint_engine.requests.inbox import CompletionEvent, Inbox, Queued
from mint_engine.requests.request import CheckedRequest
from mint_engine.residency.holding import Holder, Pinned
from mint_engine.residency.slots import NO_SLOT
from mint_engine.scheduling.request import Completion, Request, siblings
from mint_engine.scheduling.stepper import Stepper

# Read what answers that go on have: all of a lost engine's may come at once, and each thread takes turns with steps.
_threads = ThreadPoolExecutor(2, "begun", initializer=compute_alone)

_log = structlog.get_logger(__name__)


async def run_request(asked: CheckedRequest, holder: Holder, stepper: Stepper, inbox: Inbox) -> None:
    """Run a request, and put Queued and the events of each completion into `inbox`, each ending with Done or Failed.

    A failure before the request has begun is reported for the first completion. If one completion fails, or too much
    is unread in the inbox, the others are cancelled. Cancelling this coroutine cancels the request; it then returns
    only after the step thread has released all of it.
    """
    try:
        if not asked.adapter:
            await _run(asked, Pinned(NO_SLOT, ""), stepper, inbox)
            return
        async with holder.hold(asked.adapter, asked.source, asked.client) as pinned:
            await _run(asked, pinned, stepper, inbox)
    except MintError as error:
        inbox.put_nowait(CompletionEvent(0, Failed(error)))
    except Exception as defect:  # noqa: BLE001 - the client would otherwise wait forever
        _log.exception("request_defect", adapter=asked.adapter, request_id=asked.request_id)
        failure = Internal("engine", f"could not begin the request ({type(defect).__name__}); see its log")
        inbox.put_nowait(CompletionEvent(0, Failed(failure)))


async def _run(asked: CheckedRequest, pinned: Pinned, stepper: Stepper, inbox: Inbox) -> None:
    ended = asyncio.Event()
    left = len(asked.going_on)
    completions: list[Completion] = []

    def sink_of(index: int) -> Sink:
        """Return the sink of the `index`-th completion."""

        def sink(event: Event) -> None:
            nonlocal left
            try:
                inbox.put_nowait(CompletionEvent(index, event))
            except MintError:  # the inbox's reader gets the error
                _cancel(stepper, completions)
            if isinstance(event, Failed):
                _cancel(stepper, completions)
            if isinstance(event, Done | Failed):
                left -= 1
                if not left:
                    ended.set()

        return sink

    completions += await _begin(asked, pinned, stepper, [sink_of(index) for index in asked.going_on], inbox)
    try:
        await ended.wait()
    except asyncio.CancelledError:
        _cancel(stepper, completions)
        await ended.wait()  # a step in progress may still read the slot
        raise


async def _begin(
    asked: CheckedRequest, pinned: Pinned, stepper: Stepper, sinks: list[Sink], inbox: Inbox
) -> list[Completion]:
    """Queue the completions that are to be generated, and return them."""
    requests = _requests(asked, pinned)
    if asked.begun is None:
        completions = stepper.begin(requests, sinks)
    else:
        asked.begun.check_revision(asked.adapter, pinned.revision)
        # Reads the tokens that they have, which takes seconds if there are many.
        completions = await asyncio.get_running_loop().run_in_executor(_threads, stepper.begin, requests, sinks)
    unended = [each for each in completions if each.ended is None]
    if unended:
        stepper.enqueue(unended)
    inbox.put_nowait(Queued(pinned.revision))
    for each in completions:
        if each.ended is not None:
            each.sink(each.ended)
    return unended


def _requests(asked: CheckedRequest, pinned: Pinned) -> list[Request]:
    """Return a request for each completion that is to be generated, in the order of their indices."""
    every = siblings(
        Request(
            prompt=asked.prompt,
            sampling=asked.sampling,
            adapter=asked.adapter,
            revision=pinned.revision,
            slot=pinned.slot,
            arrival=pinned.arrival,
            routes=asked.routes,
            grammar=asked.grammar,
            thought=asked.thought,
            salt=asked.salt,
            client=asked.client,
        )
    )
    return [msgspec.structs.replace(every[index], begun=tokens) for index, tokens in asked.going_on.items()]


def _cancel(stepper: Stepper, completions: list[Completion]) -> None:
    """Cancel all completions; this has no effect on those that have ended already."""
    while completions:
        stepper.cancel(completions.pop())

"""One request's life in the engine: hold the adapter, run, and let go only when no step refers to its slot."""

import asyncio

import msgspec
import structlog

from mint_contracts.errors import Internal, MintError
from mint_contracts.source import Source
from mint_engine.requests.grammar import Grammar
from mint_engine.residency.holding import Held, Holder
from mint_engine.residency.slots import NO_SLOT
from mint_engine.scheduling.inbox import Begun, CompletionEvent, Inbox
from mint_engine.scheduling.request import Done, Event, Failed, Request, Sampling, Sequence, Sink, siblings
from mint_engine.scheduling.stepper import Stepper


class Asked(msgspec.Struct, frozen=True):
    """A request that passed every check which needs no adapter."""

    request_id: str
    adapter: str  # "" asks the bare base
    prompt: tuple[int, ...]
    sampling: Sampling
    source: Source | None = None  # where the catalog has the adapter
    routes: bool = False  # whether Done is to tell which experts the tokens went to
    echo: bool = False  # whether Started is to tell what the prompt's tokens are written as
    offsets: tuple[int, ...] = ()  # where these begin, if log-probabilities of the prompt are wanted
    grammar: Grammar | None = None  # of `sampling.shape`
    calls: int = 0  # the form of calls that Started is to tell
    salt: str = ""  # of what is cached


_log = structlog.get_logger(__name__)


async def live(asked: Asked, holder: Holder, stepper: Stepper, inbox: Inbox) -> None:
    """Put Begun and the events of each completion into `inbox`; the last of each is Done or Failed.

    What fails before it has begun is told of the first completion. Where one fails, or too much lies unread in the
    inbox, the others are cancelled. A cancelled life ends the request, and lasts until the step thread has let go of
    all of it.
    """
    try:
        if not asked.adapter:
            await _run(asked, Held(NO_SLOT, ""), stepper, inbox)
            return
        async with holder.hold(asked.adapter, asked.source) as held:
            await _run(asked, held, stepper, inbox)
    except MintError as error:
        inbox.put_nowait(CompletionEvent(0, Failed(error)))
    except Exception as defect:  # noqa: BLE001 - whoever waits would do so for good
        _log.exception("request_defect", adapter=asked.adapter, request_id=asked.request_id)
        failure = Internal("engine", f"could not begin the request ({type(defect).__name__}); see its log")
        inbox.put_nowait(CompletionEvent(0, Failed(failure)))


async def _run(asked: Asked, held: Held, stepper: Stepper, inbox: Inbox) -> None:
    ended = asyncio.Event()
    left = asked.sampling.n
    sequences: list[Sequence] = []

    def sink_of(index: int) -> Sink:
        def sink(event: Event) -> None:
            nonlocal left
            try:
                inbox.put_nowait(CompletionEvent(index, event))
            except MintError:  # who reads is told
                _cancel(stepper, sequences)
            if isinstance(event, Failed):
                _cancel(stepper, sequences)
            if isinstance(event, Done | Failed):
                left -= 1
                if not left:
                    ended.set()

        return sink

    request = Request(
        prompt=asked.prompt,
        sampling=asked.sampling,
        adapter=asked.adapter,
        revision=held.revision,
        slot=held.slot,
        arrival=held.arrival,
        routes=asked.routes,
        grammar=asked.grammar,
        salt=asked.salt,
    )
    sequences += stepper.submit_all(siblings(request), [sink_of(index) for index in range(left)])
    inbox.put_nowait(Begun(held.revision))
    try:
        await ended.wait()
    except asyncio.CancelledError:
        _cancel(stepper, sequences)
        await ended.wait()  # a step in progress may still read the slot
        raise


def _cancel(stepper: Stepper, sequences: list[Sequence]) -> None:
    """End all completions; those that have ended already take no notice."""
    while sequences:
        stepper.cancel(sequences.pop())

"""The prompts of one HTTP request; each is a request of its own to the engines, answered concurrently."""

from collections.abc import Awaitable, Callable, Sequence

from mint_contracts.awaiting import gather_or_cancel
from mint_contracts.sampling_pb2 import GenerateEvent, GenerateRequest
from mint_gateway.answering import REQUEST_ID_MAX_LENGTH, Answering

Send = Callable[[int, GenerateEvent], Awaitable[None]]  # the prompt, from 0, and its event


def name(requests: Sequence[GenerateRequest], request_id: str) -> None:
    """Set each request's ID, for the logs, derived from the HTTP request's."""
    for place, request in enumerate(requests):
        which = "" if len(requests) == 1 else f"-{place}"
        request.request_id = request_id[: REQUEST_ID_MAX_LENGTH - len(which)] + which


async def answer(answering: Answering, requests: Sequence[GenerateRequest], completions: int, send: Send) -> None:
    """Send the events of all prompts as they come, numbering completions across prompts, `completions` for each.

    The first failure ends the others. Raises its MintError, AioRpcError or ConnectionError.
    """

    def counted_through(place: int) -> Callable[[GenerateEvent], Awaitable[None]]:
        async def sent(event: GenerateEvent) -> None:
            if event.HasField("chunk"):
                event.chunk.index += place * completions
            elif event.HasField("finished"):
                event.finished.index += place * completions
            await send(place, event)

        return sent

    await gather_or_cancel(
        answering.answer(request, counted_through(place), None) for place, request in enumerate(requests)
    )

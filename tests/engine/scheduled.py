"""A scheduler without a model: completions of chosen sizes, and a step's effect on the books."""

from collections.abc import Sequence

from mint_engine.requests.parameters import Sampling
from mint_engine.requests.pieces import WindowDecoder
from mint_engine.requests.text import TextStream
from mint_engine.residency.slots import NO_SLOT
from mint_engine.scheduling.budget import Share
from mint_engine.scheduling.integrity import find_imbalance
from mint_engine.scheduling.pages import Pages
from mint_engine.scheduling.place_turns import PlaceTerms
from mint_engine.scheduling.prefix import extend_keys
from mint_engine.scheduling.request import Completion, Request
from mint_engine.scheduling.scheduler import Limits, Scheduler

TOTAL_PAGES = 12
MOST_STEPS = 10_000
LIMITS = Limits(running=4, waiting=8, step_tokens=20)


def scheduler(
    limits: Limits = LIMITS,
    pages: int = TOTAL_PAGES,
    terms: PlaceTerms | None = None,
    windows: Sequence[int | None] = (None,),
) -> Scheduler:
    return Scheduler(limits, Pages(pages), terms, windows)


def completion(
    prompt: int | Sequence[int],
    new: int = 1,
    adapter: str = "",
    *,
    leader: Completion | None = None,
    scored: bool = False,
    background: bool = False,
    client: str = "",
) -> Completion:
    """A request for `new` tokens after a prompt given by its length (then all tokens differ) or by its tokens."""
    tokens = tuple(range(prompt)) if isinstance(prompt, int) else tuple(prompt)
    slot = sum(map(ord, adapter)) if adapter else NO_SLOT
    sampling = Sampling(max_tokens=new, seed=0, prompt_logprobs=scored)
    revision = f"sha256:{adapter}" if adapter else ""
    request = Request(
        tokens, sampling, adapter=adapter, revision=revision, slot=slot, background=background, client=client
    )
    made = Completion(request, lambda event: None, TextStream(WindowDecoder(lambda ids: "", ())), leader)
    extend_keys(made.keys, revision, tokens)
    return made


def advance(scheduler: Scheduler, *, check: bool = True) -> tuple[list[Share], list[Completion]]:
    """Run one step on the books; return what it computed and who ended. To `check` takes longer than the step."""
    shares, ended = scheduler.next_step(), []
    assert not check or find_imbalance(scheduler) == ""
    for share in shares:
        each, samples = share.completion, share.samples
        scheduler.computed(each, share.length)
        if samples:
            each.prompt_scored = True
            each.tokens.append(len(each.tokens))
            scheduler.generated(each)
            if each.generated >= each.request.sampling.max_tokens:
                scheduler.remove(each)
                ended.append(each)
    assert not check or find_imbalance(scheduler) == ""
    return shares, ended


def run(scheduler: Scheduler) -> list[Completion]:
    """Step until no requests are left; return them in the order they ended. Fails after too many steps."""
    ended: list[Completion] = []
    for _ in range(MOST_STEPS):
        if not scheduler.busy:
            return ended
        ended += advance(scheduler)[1]
    raise AssertionError(f"{len(scheduler.live)} requests did not end in {MOST_STEPS} steps")

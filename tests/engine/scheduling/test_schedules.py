"""Random schedules against a naive engine: one request at a time, no cache, no pages, PEFT on transformers.

Requests may arrive, be cancelled or preempted, share a prefix, move to another revision, or go on as after an
engine's loss, in any order: tokens, text and scores are always the naive engine's, and the books balance after each
step.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from mint_contracts.layer_groups import PAGE_TOKENS
from mint_engine import metrics
from mint_engine.build import build
from mint_engine.requests.events import Done, Event, Failed, PromptScored, Tokens
from mint_engine.requests.parameters import Sampling
from mint_engine.residency.slots import NO_SLOT, Slots
from mint_engine.scheduling.generation import Generation
from mint_engine.scheduling.integrity import find_imbalance
from mint_engine.scheduling.pages import Pages
from mint_engine.scheduling.place_turns import PlaceTerms
from mint_engine.scheduling.request import Completion, Request, siblings
from mint_engine.scheduling.scheduler import Limits, Scheduler
from mint_engine.scheduling.stepper import Cancelled
from tests.engine.naive import may_choose
from tests.engine.running import packed, peft_model, save_adapter, save_base, save_sliding_base, settings_for

CONTEXT, PAGES, SLOTS = 96, 8, 4
SLIDING_PAGES = 18  # of one layer each; two of three layers see only a window
LIMITS = Limits(running=4, step_tokens=24)
TERMS = PlaceTerms(stay=3, last_stay=9)  # so short that most requests give way to others
RANKS = {"eight": 8, "three": 3, "four": 4}  # of the revisions
THEMES = [[random.Random(theme).randrange(2, 290) for _ in range(48)] for theme in range(2)]


@dataclass
class Told:
    """The events of one completion."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    scores: list[float] = field(default_factory=list)
    prompt_scores: list[float] | None = None
    end: Done | Failed | None = None

    def __call__(self, event: Event) -> None:
        assert self.end is None, "nothing comes after the end"
        if isinstance(event, PromptScored):
            assert self.prompt_scores is None
            assert not self.tokens
            self.prompt_scores = [score.logprob for score in event.scores]
        elif isinstance(event, Tokens):
            self.tokens += event.token_ids
            self.text += event.text
            self.scores += [score.logprob for score in event.scores]
        else:
            self.end = event


@dataclass
class Place:
    """An engine with few pages, its adapters' files, and the naive engine's answers."""

    base: Path
    folders: dict[str, Path]
    slots: Slots
    generation: Generation
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.packed = {name: packed(folder, self.slots) for name, folder in self.folders.items()}
        self.digests = {each.revision: name for name, each in self.packed.items()}
        self.decode = self.generation._forward.base.tokenizer.decode
        self.eos = self.generation._eos
        self.model = cache(lambda name: peft_model(self.base, self.folders.get(name)))

    def reset(self) -> None:
        """Drop all requests and empty the cache."""
        former = self.generation.scheduler
        self.generation.scheduler = Scheduler(LIMITS, Pages(former.pages.total), TERMS, former.windows)

    @torch.inference_mode()
    def check(self, told: Told) -> None:
        """Check that each token is the naive engine's choice, from one plain pass over the prompt and all tokens, and
        that the completion ends where it must. A cancelled one may end anywhere."""
        request, sampling = told.request, told.request.sampling
        start, name = len(request.prompt) - 1, self.digests.get(request.revision, "")
        logits = self.model(name)(input_ids=torch.tensor([[*request.prompt, *told.tokens]])).logits[0]
        rows = logits[start : start + len(told.tokens)]
        for index, token in enumerate(told.tokens):
            assert may_choose(rows[index], token, sampling, index)
        self.check_end(told)
        scores = torch.log_softmax(logits, -1)
        if sampling.logprobs is not None:
            expected = [float(scores[start + at, token]) for at, token in enumerate(told.tokens)]
            assert told.scores == pytest.approx(expected, abs=1e-3)
        if sampling.prompt_logprobs and (told.tokens or isinstance(told.end, Done)):
            expected = [float(scores[at, token]) for at, token in enumerate(request.prompt[1:])]
            assert told.prompt_scores == pytest.approx(expected, abs=1e-3)
        assert sampling.logprobs is not None or not told.scores
        assert sampling.prompt_logprobs or told.prompt_scores is None

    def check_end(self, told: Told) -> None:
        """Check that it ends at the first stop or at its length, and that its text is that of its tokens."""
        sampling, stopped, text = told.request.sampling, False, ""
        for at, token in enumerate(told.tokens):
            assert not stopped, "it went on after its end"
            text = str(self.decode(told.tokens[: at + 1], skip_special_tokens=True)).rstrip("\ufffd")
            stops = [text.index(stop) for stop in sampling.stop if stop in text]
            text = text[: min(stops)] if stops else text
            stopped = bool(stops) or (token in self.eos and not sampling.ignore_eos)
        if isinstance(told.end, Done):
            assert told.text == text
            assert stopped or len(told.tokens) == sampling.max_tokens
            assert (told.end.stopped, told.end.completion_tokens) == (stopped, len(told.tokens))
        else:
            assert isinstance(told.end, Failed)
            assert isinstance(told.end.error, Cancelled)
            assert text.startswith(told.text)


@pytest.fixture(scope="module", params=["llama", "sliding"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root, slides = tmp_path_factory.mktemp("place"), request.param == "sliding"
    base = save_sliding_base(root / "base") if slides else save_base(root / "base")
    folders = {name: save_adapter(base, root / name, rank=rank) for name, rank in RANKS.items()}
    layers, pages = (1, SLIDING_PAGES) if slides else (2, PAGES)
    token_bytes = layers * 2 * 2 * 16 * 4  # keys and values of a page's layers, each of two heads of 16 floats
    few = (pages + 1) * PAGE_TOKENS * token_bytes
    options = settings_for(base, context_length=CONTEXT, kv_cache_bytes=few, device_slots=SLOTS)
    _, slots, generation = build(options, base, LIMITS)
    assert generation.scheduler.pages.total == pages
    assert generation.scheduler.windows == ((None, 20, 20) if slides else (None,))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread does so little work sooner, above all beside other programs
    yield Place(base, folders, slots, generation)
    torch.set_num_threads(threads)


@dataclass
class Schedule:
    """Requests of two adapters and the bare base, on one place."""

    place: Place
    at: dict[str, tuple[int, str]] = field(default_factory=dict)  # slot and revision of each adapter
    told: dict[Completion, Told] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.place.reset()
        self.hand_over("a", "eight")
        self.hand_over("b", "three")

    @property
    def scheduler(self) -> Scheduler:
        return self.place.generation.scheduler

    def hand_over(self, adapter: str, revision: str) -> bool:
        """Load a revision into an unused slot; from now on it is the adapter's. False if no slot is free."""
        used = {each.request.slot for each in self.scheduler.live} | {slot for slot, _ in self.at.values()}
        free = [slot for slot in range(SLOTS) if slot not in used]
        if not free:
            return False
        self.place.slots.load(free[0], self.place.packed[revision])
        self.at[adapter] = (free[0], self.place.packed[revision].revision)
        return True

    def arrive(self, prompt: list[int], adapter: str, sampling: Sampling) -> list[Completion]:
        slot, revision = self.at.get(adapter, (NO_SLOT, ""))
        request = Request(tuple(prompt), sampling, adapter, revision, slot)
        leader: Completion | None = None
        made = []
        for each in siblings(request):
            told = Told(each)
            made.append(self.place.generation.begin(each, told, leader))
            leader = leader or made[0]
            self.told[made[-1]] = told
        for completion in made:
            self.scheduler.add(completion)
        self.balance()
        return made

    def step(self) -> None:
        self.tell(self.place.generation.step())

    def cancel(self, completion: Completion) -> None:
        self.tell(self.place.generation.fail([completion], Cancelled("request", "was cancelled")))

    def lose(self, completion: Completion) -> None:
        """Have it begin anew with the tokens that its client has, as at another engine."""
        told = self.told.pop(completion)
        self.cancel(completion)
        again = self.place.generation.begin(replace(told.request, begun=tuple(told.tokens)), told, None)
        self.told[again], told.end = told, again.ended
        if again.ended is None:
            self.scheduler.add(again)

    def finish(self) -> None:
        """Step until all have ended, then check everything that was sent."""
        steps = 0
        while self.scheduler.busy:
            self.step()
            steps += 1
            assert steps < 5000
        for told in self.told.values():
            self.place.check(told)
        assert self.scheduler.prefix.available == self.scheduler.pages.total

    def tell(self, outcomes: list[tuple[Completion, Event]]) -> None:
        for completion, event in outcomes:
            completion.sink(event)
        self.balance()

    def balance(self) -> None:
        assert find_imbalance(self.scheduler) == ""


def prompt_of(theme: int, length: int, own: int) -> list[int]:
    """The beginning of a theme, followed by `own` further tokens."""
    return [*THEMES[theme][:length], *(5 + length + at for at in range(own))]


PROMPTS = st.builds(
    prompt_of, st.integers(0, 1), st.sampled_from([1, 15, 16, 17, 31, 32, 33, 40]), st.sampled_from([0, 1, 5])
)
SAMPLINGS = st.builds(
    Sampling,
    max_tokens=st.sampled_from([0, 1, 2, 18, 45]),
    seed=st.sampled_from([0, 1, 2**64 - 1]),
    temperature=st.sampled_from([0.0, 1.0]),
    top_p=st.sampled_from([1.0, 0.9]),
    stop=st.sampled_from([(), (), ("e",), ("th", "o")]),
    logprobs=st.sampled_from([None, 2]),
    prompt_logprobs=st.booleans(),
    n=st.sampled_from([1, 1, 1, 2, 3]),
)


def machine_of(place: Place) -> type[RuleBasedStateMachine]:
    class Random(RuleBasedStateMachine):
        """Arrivals, cancellations, handoffs, losses and steps in any order."""

        def __init__(self) -> None:
            super().__init__()
            self.schedule = Schedule(place)

        @rule(prompt=PROMPTS, adapter=st.sampled_from(["", "a", "b"]), sampling=SAMPLINGS)
        def arrive(self, prompt: list[int], adapter: str, sampling: Sampling) -> None:
            self.schedule.arrive(prompt, adapter, sampling)

        @rule(count=st.integers(1, 20))
        def step(self, count: int) -> None:
            for _ in range(count):
                self.schedule.step()

        @precondition(lambda self: self.schedule.scheduler.live)
        @rule(data=st.data())
        def cancel(self, data: st.DataObject) -> None:
            self.schedule.cancel(data.draw(st.sampled_from(self.schedule.scheduler.live)))

        @precondition(lambda self: self.schedule.scheduler.live)
        @rule(data=st.data())
        def lose(self, data: st.DataObject) -> None:
            movable = [each for each in self.schedule.scheduler.live if not each.request.sampling.prompt_logprobs]
            if movable:
                self.schedule.lose(data.draw(st.sampled_from(movable)))

        @rule(adapter=st.sampled_from(["a", "b"]), revision=st.sampled_from(sorted(RANKS)))
        def hand_over(self, adapter: str, revision: str) -> None:
            self.schedule.hand_over(adapter, revision)

        def teardown(self) -> None:
            self.schedule.finish()

    return Random


def counted(metric: object) -> float:
    return float(metric._value.get())  # type: ignore[attr-defined]


def test_random_schedules(place: Place) -> None:
    reasons = (metrics.PREEMPTED_FOR_PAGES, metrics.PREEMPTED_FOR_TURN)
    preempted, reused = [counted(each) for each in reasons], counted(metrics.REUSED_TOKENS)
    examples = 20 if any(place.generation.scheduler.windows) else 50  # the sliding base runs on slower modules
    run_state_machine_as_test(
        machine_of(place),
        settings=settings(max_examples=examples, stateful_step_count=25, deadline=None, derandomize=True),
    )
    assert all(counted(each) > before for each, before in zip(reasons, preempted, strict=True))
    assert counted(metrics.REUSED_TOKENS) > reused


def test_preempted_requests_go_on_where_they_were(place: Place) -> None:
    """Four requests that outgrow the pages, with seeds and scores: nothing is sent twice, nothing is missing."""
    schedule = Schedule(place)
    before = counted(metrics.PREEMPTED_FOR_PAGES)
    for at, adapter in enumerate(("a", "b", "", "a")):
        sampling = Sampling(50, seed=at, temperature=1.0, logprobs=1, prompt_logprobs=True, ignore_eos=True)
        schedule.arrive(prompt_of(at % 2, 17 + at, at), adapter, sampling)
    schedule.finish()
    assert counted(metrics.PREEMPTED_FOR_PAGES) > before


def test_a_prefix_is_computed_once_a_revision(place: Place) -> None:
    schedule = Schedule(place)
    for adapter, found in (("a", 0), ("a", 32), ("b", 0), ("", 0), ("", 32), ("b", 32)):
        before = counted(metrics.REUSED_TOKENS)
        schedule.arrive(prompt_of(0, 40, 2), adapter, Sampling(4, seed=0, logprobs=0))
        while schedule.scheduler.busy:
            schedule.step()
        assert counted(metrics.REUSED_TOKENS) - before == found, adapter
    schedule.hand_over("a", "four")
    before = counted(metrics.REUSED_TOKENS)
    schedule.arrive(prompt_of(0, 40, 2), "a", Sampling(4, seed=0))
    schedule.finish()
    assert counted(metrics.REUSED_TOKENS) == before, "another revision of the same adapter"


def test_a_conversation_finds_its_own_answers(place: Place) -> None:
    """Generated tokens are cached too: the next turn computes only what is new."""
    schedule = Schedule(place)
    [first] = schedule.arrive(prompt_of(0, 20, 0), "a", Sampling(18, seed=0, ignore_eos=True))
    while schedule.scheduler.busy:
        schedule.step()
    before = counted(metrics.REUSED_TOKENS)
    schedule.arrive([*first.tokens, 7, 8], "a", Sampling(4, seed=0))
    schedule.finish()
    assert counted(metrics.REUSED_TOKENS) - before == 32


def test_requests_in_flight_keep_their_revision(place: Place) -> None:
    """After a handoff between two steps, earlier requests end on the old revision, beside later ones on the new."""
    schedule = Schedule(place)
    prompt = prompt_of(0, 17, 0)
    [old] = schedule.arrive(prompt, "a", Sampling(12, seed=0, ignore_eos=True))
    for _ in range(3):
        schedule.step()
    assert schedule.hand_over("a", "four")
    [new] = schedule.arrive(prompt, "a", Sampling(12, seed=0, ignore_eos=True))
    schedule.finish()
    assert old.request.revision != new.request.revision
    assert old.tokens != new.tokens


def test_siblings_draw_as_requests_of_their_seeds(place: Place) -> None:
    schedule = Schedule(place)
    prompt = prompt_of(1, 33, 0)
    hot = Sampling(8, seed=2**64 - 1, temperature=1.0, ignore_eos=True)
    together = schedule.arrive(prompt, "b", replace(hot, n=3))
    schedule.finish()
    alone = [schedule.arrive(prompt, "b", replace(hot, seed=seed))[0] for seed in (2**64 - 1, 0, 1)]
    schedule.finish()
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert len({tuple(each.tokens) for each in together}) == 3

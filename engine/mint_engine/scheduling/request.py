"""A request (frozen), the events that are posted for it, and its state while it runs."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from mint_contracts.errors import MintError
from mint_contracts.layer_groups import NULL_PAGE, PAGE_TOKENS
from mint_engine.model.routes import Routes
from mint_engine.requests.grammar import Grammar, Shape
from mint_engine.requests.text import TextStream
from mint_engine.requests.token_counts import TokenCounts
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.slots import NO_SLOT

SEEDS = 2**64


class Sampling(msgspec.Struct, frozen=True):
    """How tokens are chosen; already validated. `seed` is always set."""

    max_tokens: int  # 0: the prompt is computed, and no token is chosen
    seed: int
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many of the most likely tokens besides the chosen one
    tempered_logprobs: bool = False  # of logits divided by the temperature, without filters
    prompt_logprobs: bool = False
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    shape: Shape | None = None  # what the completion must be
    n: int = 1  # completions; `siblings` makes a request of each

    @property
    def penalises(self) -> bool:
        """Whether penalties or biases change the logits before a token is chosen."""
        penalised = self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        return penalised or bool(self.logit_bias)

    @property
    def scored_at(self) -> float:
        """The temperature at which the log-probabilities of completions are taken."""
        return self.temperature if self.tempered_logprobs and self.temperature > 0 else 1.0


class Party(NamedTuple):
    """A unit between which places are shared: an adapter's tenants, or its training."""

    adapter: str
    background: bool


class Request(msgspec.Struct, frozen=True):
    """One prompt for one revision in one slot, pinned until the request ends."""

    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str = ""
    revision: str = ""
    slot: int = NO_SLOT
    routes: bool = False  # Done must report which experts its tokens were routed to
    background: bool = False  # a rollout: tenants' requests go first in every step
    grammar: Grammar | None = None  # its shape's grammar in the initial state; each completion advances a copy
    arrival: Arrival | None = None  # the arrival of its adapter in the slot, if that was incomplete when it began
    salt: str = ""  # requests with different salts share no cached pages

    @property
    def party(self) -> Party:
        """The party whose places it takes."""
        return Party(self.adapter, self.background)

    @property
    def awaits(self) -> bool:
        """Whether its adapter is still arriving, so that it must be computed without others."""
        return self.arrival is not None and not self.arrival.whole

    @property
    def most_tokens(self) -> int:
        """The most tokens it can have. The last one is never fed back, but its room is reserved all the same."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def reuses(self) -> bool:
        """Whether its keys and values belong to a known revision, so that they may be shared."""
        return self.slot == NO_SLOT or self.revision != ""


def siblings(request: Request) -> list[Request]:
    """Return one request for each of the `n` completions; the i-th has the seed `seed + i` modulo 2**64.

    So the i-th equals a request for one completion with that seed. Only the first scores the prompt.
    """
    sampling = request.sampling
    return [
        msgspec.structs.replace(
            request,
            sampling=msgspec.structs.replace(
                sampling,
                n=1,
                seed=(sampling.seed + index) % SEEDS,
                prompt_logprobs=sampling.prompt_logprobs and index == 0,
            ),
        )
        for index in range(sampling.n)
    ]


class Scored(msgspec.Struct, frozen=True):
    """A token's log-probability, and the most likely tokens at its position (see `Sampling.tempered_logprobs`)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class PromptScored(msgspec.Struct, frozen=True):
    """The prompt was read. `scores` are those of its tokens from the second on (the first has no predecessor)."""

    scores: tuple[Scored, ...]


class Tokens(msgspec.Struct, frozen=True):
    """New tokens, and the text that became final with them."""

    token_ids: tuple[int, ...]
    text: str
    scores: tuple[Scored, ...] = ()
    offset: int = 0  # characters of the completion before the first of these tokens


class Done(msgspec.Struct, frozen=True):
    """The request succeeded: it ended at a stop or at its maximum length."""

    stopped: bool
    completion_tokens: int
    cached_tokens: int = 0  # tokens of the prompt that were cached when its first completion first got a place
    routes: Routes | None = None  # of all tokens but the last, which was never computed


class Failed(msgspec.Struct, frozen=True):
    """The request ended with an error."""

    error: MintError


Event = PromptScored | Tokens | Done | Failed
Sink = Callable[[Event], None]


class State(enum.Enum):
    """The scheduling state of a completion."""

    PARKED = enum.auto()  # until its leader has computed the prompt that they share
    WAITING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


@dataclass(eq=False, slots=True)
class Completion:
    """The state of one completion while it waits and runs. Owned by the step thread."""

    request: Request
    sink: Sink
    text: TextStream
    leader: "Completion | None" = None  # the sibling that computes their prompt
    grammar: Grammar | None = None  # advanced by the tokens so far
    state: State = State.WAITING
    arrival: int = 0  # increases over all requests
    tokens: list[int] = field(default_factory=list)  # the prompt's, then those generated
    token_counts: TokenCounts | None = None  # of `tokens`, once a penalty or a grammar needs them
    computed: int = 0  # tokens whose keys and values are cached
    tables: tuple[list[int], ...] = ()  # pages by group of layers; the null page where a window has moved on
    keys: list[bytes] = field(default_factory=list)  # of the full pages of `tokens`, as far as they are needed
    published: int = 0  # pages of each table that were found in the prefix cache or offered to it
    prompt_scores: list[Scored] = field(default_factory=list)
    prompt_scored: bool = False  # the scores are complete and posted
    late: int = 0  # consecutive steps that had no time for its mask (see `masking`)
    charged: int = 0  # tokens of the prompt that were charged as service or found cached; each counts once
    # About its place (see `turns`):
    placed_at: int = 0  # the step in which it got the place
    placed_with: int = 0  # tokens that it had then
    found: int = 0  # how many of those were cached
    found_first: int = 0  # the same when it got its first place: all of them are the prompt's
    reached: int = 0  # tokens that had been computed when it lost its previous place

    def __post_init__(self) -> None:
        self.tokens.extend(self.request.prompt)

    @property
    def pages(self) -> list[int]:
        """All pages that it refers to, of every group."""
        return [page for table in self.tables for page in table if page != NULL_PAGE]

    @property
    def covered(self) -> int:
        """Tokens that all tables have pages for."""
        return min(map(len, self.tables)) * PAGE_TOKENS

    @property
    def generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def pending(self) -> int:
        """Tokens known but not yet computed: the rest of the prompt, or the newest token."""
        return len(self.tokens) - self.computed

    @property
    def must_score(self) -> bool:
        """Whether its prompt's log-probabilities are still to be computed."""
        return self.request.sampling.prompt_logprobs and not self.prompt_scored

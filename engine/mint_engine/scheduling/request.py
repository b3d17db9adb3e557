"""A request as it was asked (frozen), what is posted back to it, and its state while it runs."""

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
    """How tokens are chosen; checked before it gets here. `seed` is always set."""

    max_tokens: int  # 0: the prompt is computed, and nothing chosen
    seed: int
    temperature: float = 0.0  # 0 is greedy
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many of the most likely tokens beside the chosen one
    tempered_logprobs: bool = False  # of logits over the temperature, filters aside, and not as they are
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
        """Whether logits are changed before a token is chosen."""
        penalised = self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
        return penalised or bool(self.logit_bias)

    @property
    def scored_at(self) -> float:
        """The temperature of the log-probabilities of completions."""
        return self.temperature if self.tempered_logprobs and self.temperature > 0 else 1.0


class Party(NamedTuple):
    """Between whom places are shared: an adapter's tenants, and apart from them its training."""

    adapter: str
    background: bool


class Request(msgspec.Struct, frozen=True):
    """One prompt for one revision in one slot, pinned until the request ends."""

    prompt: tuple[int, ...]
    sampling: Sampling
    adapter: str = ""
    revision: str = ""
    slot: int = NO_SLOT
    routes: bool = False  # whether Done is to tell which experts its tokens went to
    background: bool = False  # whether tenants' requests go first in every step: a rollout
    grammar: Grammar | None = None  # of its shape, where it begins; each completion follows a copy
    arrival: Arrival | None = None  # by which its adapter comes into the slot, or has come
    salt: str = ""  # of those with another nothing that is cached is found

    @property
    def party(self) -> Party:
        """Whose places it takes."""
        return Party(self.adapter, self.background)

    @property
    def awaits(self) -> bool:
        """Whether a part of its adapter has yet to come, so that it is computed beside no others."""
        return self.arrival is not None and not self.arrival.whole

    @property
    def most_tokens(self) -> int:
        """Tokens that it can grow to. The last one is never fed back, but its place is reserved all the same."""
        return len(self.prompt) + self.sampling.max_tokens

    @property
    def reuses(self) -> bool:
        """Whether its keys and values are known by revision, so that they may be shared."""
        return self.slot == NO_SLOT or self.revision != ""


def siblings(request: Request) -> list[Request]:
    """One request for each of the `n` completions: the i-th draws with seed + i, modulo 2**64.

    So the i-th of n is what a request for one completion with that seed gets. Only the first scores the prompt.
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
    """A token's log-probability under the model, temperature and filters aside, and the likeliest ones there."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class PromptScored(msgspec.Struct, frozen=True):
    """The prompt was read: scores of its tokens from the second on (the first has nothing before it)."""

    scores: tuple[Scored, ...]


class Tokens(msgspec.Struct, frozen=True):
    """New tokens, and the text that became final with them."""

    token_ids: tuple[int, ...]
    text: str
    scores: tuple[Scored, ...] = ()
    offset: int = 0  # characters of the completion before the first of them


class Done(msgspec.Struct, frozen=True):
    """The request ended well: at a stop, or at its length."""

    stopped: bool
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt, when its first completion first got a place
    routes: Routes | None = None  # of all its tokens but the last, which was never computed


class Failed(msgspec.Struct, frozen=True):
    """The request ended with an error."""

    error: MintError


Event = PromptScored | Tokens | Done | Failed
Sink = Callable[[Event], None]


class State(enum.Enum):
    """Where a sequence is."""

    PARKED = enum.auto()  # until its leader has computed the prompt that they share
    WAITING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


@dataclass(eq=False, slots=True)
class Sequence:
    """One completion's state while it waits and runs. Owned by the step thread."""

    request: Request
    sink: Sink
    text: TextStream
    leader: "Sequence | None" = None  # the sibling that computes their prompt
    grammar: Grammar | None = None  # what it must still become
    state: State = State.WAITING
    arrival: int = 0  # counts up over all requests
    tokens: list[int] = field(default_factory=list)  # prompt, then completion
    token_counts: TokenCounts | None = None  # of `tokens`, once a penalty or a grammar has asked
    computed: int = 0  # tokens whose keys and values are cached
    tables: tuple[list[int], ...] = ()  # pages by group of layers; the null page where a window has gone on
    keys: list[bytes] = field(default_factory=list)  # of the full pages of `tokens`, as far as they are needed
    published: int = 0  # of each table, how many were found in the prefix cache or were offered to it
    prompt_scores: list[Scored] = field(default_factory=list)
    prompt_scored: bool = False  # and told
    late: int = 0  # steps in a row in which there was no time for its mask, see `masking`
    charged: int = 0  # tokens of the prompt that have counted as service, or were found: each counts once
    # Of its place, see `turns`:
    placed_at: int = 0  # the step in which it got it
    placed_with: int = 0  # tokens that it had then
    found: int = 0  # of those, how many were cached
    found_first: int = 0  # and when it had its first place, all of them the prompt's
    reached: int = 0  # tokens that had been computed when it lost the one before

    def __post_init__(self) -> None:
        self.tokens.extend(self.request.prompt)

    @property
    def pages(self) -> list[int]:
        """All that it refers to, of every group."""
        return [page for table in self.tables for page in table if page != NULL_PAGE]

    @property
    def covered(self) -> int:
        """Tokens that all tables have pages for."""
        return min(map(len, self.tables)) * PAGE_TOKENS

    @property
    def completion_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def pending(self) -> int:
        """Tokens known but not yet computed: the prompt's rest, or the newest token."""
        return len(self.tokens) - self.computed

    @property
    def must_score(self) -> bool:
        """Whether its prompt's log-probabilities are still to be computed."""
        return self.request.sampling.prompt_logprobs and not self.prompt_scored

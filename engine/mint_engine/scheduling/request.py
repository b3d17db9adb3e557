"""A request with its adapter in a slot (frozen), and the state of each of its completions while it runs."""

import enum
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from mint_contracts.layer_groups import NULL_PAGE, PAGE_TOKENS
from mint_contracts.sampling_pb2 import Started
from mint_engine.requests.events import Done, Scored, Sink
from mint_engine.requests.grammar import Grammar
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.text import TextStream
from mint_engine.requests.thoughts import Ahead
from mint_engine.requests.token_counts import TokenCounts
from mint_engine.residency.arrival import Arrival
from mint_engine.residency.slots import NO_SLOT

SEEDS = 2**64


class Party(NamedTuple):
    """A unit between which places are shared: a client's requests for an adapter, or the adapter's training.

    Clients that have names share first, then each one's parties what is the client's. Parties without such a client
    share as if each were one.
    """

    adapter: str
    background: bool
    client: str = ""  # empty if clients cannot be told apart, and for training

    @property
    def path(self) -> "tuple[Sharer, ...]":
        """Who shares on its behalf, at each level from the top: its client, if that has a name, then itself."""
        return (self.client, self) if self.client else (self,)


Sharer = str | Party  # a client or a party


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
    thought: int = 0  # how completions begin: see Started.Thought
    salt: str = ""  # requests with different salts share no cached pages
    client: str = ""  # who asks; empty if clients cannot be told apart
    begun: tuple[int, ...] = ()  # tokens of the completion that another engine generated

    @property
    def party(self) -> Party:
        """The party whose places it takes."""
        return Party(self.adapter, self.background, self.client)

    @property
    def channels(self) -> bool:
        """Whether completions are messages, whose markers are reported and are part of the text."""
        return self.thought == Started.CHANNELS

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
    ahead: Ahead | None = None  # what comes before the answer proper, after the tokens so far
    state: State = State.WAITING
    ended: Done | None = None  # the tokens that it began with end it: there is nothing to generate
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
    # About its place (see `place_turns`):
    placed_at: int = 0  # the step in which it got the place
    placed_with: int = 0  # tokens that it had then
    found: int = 0  # how many of those were cached
    waited: dict[Sharer, int] = field(default_factory=dict)  # of its path, who had no place until then: since when
    found_first: int = 0  # the same when it got its first place: all of them are the prompt's
    reached: int = 0  # tokens that had been computed when it lost its previous place
    lacked: tuple[int, int, bytes] | None = None  # what it waits to change (see `Scheduler._lacks_still`)

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

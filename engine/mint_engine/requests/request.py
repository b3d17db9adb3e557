"""A request as a client sent it, checked."""

import msgspec

from mint_contracts.source import Source
from mint_engine.requests.begun import Begun
from mint_engine.requests.grammar import Grammar
from mint_engine.requests.parameters import Sampling


class CheckedRequest(msgspec.Struct, frozen=True):
    """A request that has passed all checks that need no adapter."""

    request_id: str
    adapter: str  # "" is the bare base
    prompt: tuple[int, ...]
    sampling: Sampling
    source: Source | None = None  # the adapter's source in the catalog
    routes: bool = False  # Done must report which experts the tokens were routed to
    echo: bool = False  # Started must report the text of the prompt's tokens
    offsets: tuple[int, ...] = ()  # where the prompt's tokens begin, if their log-probabilities are wanted
    grammar: Grammar | None = None  # compiled from `sampling.shape`
    calls: int = 0  # the form of tool calls that Started must report
    thought: int = 0  # how completions begin, which Started must report
    salt: str = ""  # cache salt: separates the request's cached pages from those of other salts
    client: str = ""  # who asks, for turns and shares; empty if clients cannot be told apart
    begun: Begun | None = None  # what the client has already, if another engine began the answer

    @property
    def going_on(self) -> dict[int, tuple[int, ...]]:
        """The completions to generate, by index, and what the client has of each."""
        begun = self.begun.completions if self.begun is not None else ((),) * self.sampling.n
        return {index: tokens for index, tokens in enumerate(begun) if tokens is not None}

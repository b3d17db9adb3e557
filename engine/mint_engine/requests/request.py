"""A request as a client sent it, checked."""

import msgspec

from mint_contracts.source import Source
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

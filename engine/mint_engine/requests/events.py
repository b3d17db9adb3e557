"""The events of a request: what is posted for it while it runs, in the order in which its client gets them."""

from collections.abc import Callable

import msgspec

from mint_contracts.errors import MintError
from mint_engine.model.routes import Routes


class Scored(msgspec.Struct, frozen=True):
    """A token's log-probability, and the most likely tokens at its position (see `Sampling.tempered_logprobs`)."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class PromptScored(msgspec.Struct, frozen=True):
    """The prompt was read. `scores` are those of its tokens from the second on (the first has no predecessor)."""

    scores: tuple[Scored, ...]


class Tokens(msgspec.Struct, frozen=True):
    """New tokens, and the text that became final with them."""

    token_ids: tuple[int, ...]
    text: str
    scores: tuple[Scored, ...]
    offset: int = 0  # characters of the completion before the first of these tokens
    markers: tuple[int, ...] = ()  # characters before each marker of a message among them


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

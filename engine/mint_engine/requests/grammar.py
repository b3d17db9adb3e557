"""What a completion must be: the tokens that may come next, by a grammar over the base's vocabulary.

Grammars are llguidance's (https://github.com/guidance-ai/llguidance), which bounds the work on each of them.
"""

import json
import time
from collections.abc import Set
from typing import NamedTuple, cast

import structlog
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mint_contracts.errors import InvalidRequest
from mint_engine.requests.formats import known_alone
from mint_engine.requests.grammar_cost import too_much

_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)  # a state takes up to 2 kB
# A text that must come may be written with any tokens. Else each mask would take as long as that text is.
_OPTIONS = '%llguidance {"no_forcing": true}'
# In place of what a schema says of this. White space is bounded: a weak model writes nothing else, once it may.
_JSON = {"whitespace_pattern": r"[ \n\r\t]{1,32}"}
_LONGEST_REASON = 300
SLOW_S = 0.001  # of one mask; most take a twentieth of that

_log = structlog.get_logger(__name__)


class Shape(NamedTuple):
    """What is asked for: the field of SamplingParams that says it, and a JSON schema or a regular expression."""

    field: str
    text: str


class Grammar:
    """What one completion must still become. Used by one thread at a time."""

    def __init__(self, field: str, matcher: LLMatcher, tokens: int) -> None:
        """`field` is named by errors; `tokens` are so many of the tokenizer's."""
        self._field, self.matcher, self.tokens = field, matcher, tokens
        self.mask_s = 0.0  # of one thread, that its next mask may take by what was seen
        self.paid_s = 0.0  # of one thread, that its last one is known to have taken

    def copy(self) -> "Grammar":
        """Another of the same state, for another completion of the same request.

        They share a lexer: what one of them finds there counts for all towards what it may find at most, and where
        that is too much, none can go on. So each request's shape is compiled anew.
        """
        copy = Grammar(self._field, self.matcher.deep_copy(), self.tokens)
        copy.mask_s = self.mask_s
        return copy

    def looked(self, took_s: float, *, paid_s: float) -> None:
        """Its next tokens were looked for, in about so long; `paid_s` of that was its own for certain.

        Masks are slow and quick in turns: what was slow is taken for slow for some tokens more.
        """
        self.mask_s = max(took_s, self.mask_s / 2)
        self.paid_s = paid_s

    def settle(self, *, any_may: bool) -> None:
        """The tokens that may come next were looked for (`masks`): whether any of the base's may.

        Raises InvalidRequest where that took too much work, or where none may.
        """
        self._check()
        if not any_may:
            raise InvalidRequest(self._subject, "leads to where none of this base's tokens may follow")

    def take(self, token: int) -> bool:
        """The token came, one that may: whether nothing may follow it. Raises InvalidRequest as `settle` does."""
        self.matcher.consume_token(token)
        self._check()
        return self.matcher.is_stopped()

    def check(self) -> None:
        """Raise InvalidRequest where it is no grammar, or nothing matches it."""
        self._check()
        began = time.thread_time()
        self.matcher.compute_bitmask()
        self.mask_s = time.thread_time() - began
        self._check()

    @property
    def _subject(self) -> str:
        return f"sampling.{self._field}"

    def _check(self) -> None:
        if self.matcher.is_error():
            raise InvalidRequest(self._subject, f"cannot be followed: {_reason(self.matcher.get_error())}")


class Grammars:
    """What makes grammars over one base's vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos: Set[int]) -> None:
        """Takes most of a second for 50,000 tokens, with Python's lock held: to be made before an engine serves.

        A tokenizer that llguidance cannot take is told of by `compile`.
        """
        self._vocabulary: LLTokenizer | None = None
        self._trouble = ""
        ends = sorted(token for token in eos if token < len(tokenizer))
        try:
            self._vocabulary = from_tokenizer(cast(PreTrainedTokenizerFast, tokenizer), eos_token=ends)
        except BaseException as error:  # noqa: BLE001 - a panic of the library's is no Exception; all else is served
            self._trouble = _reason(str(error))
            _log.warning("no_grammars", reason=self._trouble)

    def compile(self, shape: Shape) -> Grammar:
        """The grammar of a shape, where it begins; takes up to some 200 ms, most of them without Python's lock.

        Raises InvalidRequest, which names the field.
        """
        subject = f"sampling.{shape.field}"
        if self._vocabulary is None:
            raise InvalidRequest(
                subject, f"is not available for this base, whose tokenizer cannot be read: {self._trouble}"
            )
        try:
            text = _written(shape)
        except ValueError as error:
            raise InvalidRequest(subject, f"cannot be read: {_reason(str(error))}") from None
        matcher = LLMatcher(self._vocabulary, text, log_level=0, limits=_LIMITS)
        grammar = Grammar(shape.field, matcher, self._vocabulary.vocab_size)
        grammar.check()
        return grammar


def _written(shape: Shape) -> str:
    """A shape as llguidance's own format has it. Raises ValueError."""
    if shape.field == "regex":
        if (len(shape.text) - len(shape.text.rstrip("\\"))) % 2:  # which the library passes over
            raise ValueError("it ends in a backslash that escapes nothing")
        return f"{_OPTIONS}\nstart: /{regex_to_lark(shape.text, '')}/"
    try:
        schema = json.loads(shape.text)
        if not isinstance(schema, dict):
            raise ValueError("it is not a JSON object")
        schema = known_alone(schema)
        if why := too_much(schema):
            raise ValueError(why)
        return f"{_OPTIONS}\nstart: %json {json.dumps(schema | {'x-guidance': _JSON})}"
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _reason(message: str) -> str:
    """What llguidance says, in a line, and without where in its own format that is."""
    lines = message.splitlines() or ["no reason was given"]
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    if line.startswith("NoExtension"):
        return "nothing matches it"
    for before in ("failed to compile JSON schema: ", 'failed to parse "%json": ', " (in regex): "):
        line = line.rpartition(before)[2]
    return line[:_LONGEST_REASON]

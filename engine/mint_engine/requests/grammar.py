"""Constrains completions: which tokens may come next, by a grammar over the base's vocabulary.

A thought before the answer is free, but for its end: the grammar begins after it. In channels it is part of it.

Grammars are llguidance's (https://github.com/guidance-ai/llguidance), which bounds the work on each of them.
"""

import json
import time
from collections.abc import Sequence, Set
from typing import NamedTuple, cast

import numpy as np
import structlog
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mint_contracts.errors import InvalidRequest
from mint_engine.requests.channels import Channels, before_final
from mint_engine.requests.closing import closed
from mint_engine.requests.formats import known_alone
from mint_engine.requests.grammar_cost import too_much
from mint_engine.requests.thoughts import Ahead, after

_LIMITS = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)  # a state takes up to 2 kB
# Do not force the tokens of mandatory text: otherwise each mask would take time proportional to its length.
_OPTIONS = '%llguidance {"no_forcing": true}'
# Overrides a schema's own options. White space is bounded, because a weak model may write nothing else once it may.
_JSON = {"whitespace_pattern": r"[ \n\r\t]{1,32}"}
_LONGEST_REASON = 300
_WORD = 32  # bits
SLOW_S = 0.001  # time of a mask that counts as slow; most take a twentieth of that

_log = structlog.get_logger(__name__)


class Shape(NamedTuple):
    """A requested shape: the field of SamplingParams, and its JSON schema or regular expression."""

    field: str
    text: str


class Grammar:
    """The state of one completion's grammar. Used by one thread at a time."""

    def __init__(self, field: str, matcher: LLMatcher, tokens: int, free: np.ndarray, ahead: Ahead | None) -> None:
        """`field` is named in errors; `tokens` is the number of the tokenizer's tokens.

        `free` is the mask [tokens / 32] of a thought, and `ahead` the thought that may come before the shape.
        """
        self._field, self.matcher, self.tokens, self._free, self._ahead = field, matcher, tokens, free, ahead
        self.mask_s = 0.0  # estimated thread time of its next mask
        self.paid_s = 0.0  # thread time that its last mask certainly took; 0 within a thought

    def copy(self) -> "Grammar":
        """Return a copy in the same state, for another completion of the same request.

        Copies share a lexer, whose states count towards one limit; beyond it, none of them can go on. So the shape of
        each request is compiled separately.
        """
        copy = Grammar(self._field, self.matcher.deep_copy(), self.tokens, self._free, self._ahead)
        copy.mask_s = self.mask_s
        return copy

    @property
    def thinks(self) -> bool:
        """Whether any token may come until the thought's end."""
        return self._ahead is not None and self._ahead.begun

    def record_time(self, took_s: float, *, paid_s: float) -> None:
        """Record that its mask took about `took_s` seconds, of which `paid_s` were certainly its own.

        Slow and quick masks alternate, so a grammar that was slow is expected to be slow for some more tokens.
        """
        self.mask_s = max(took_s, self.mask_s / 2)
        self.paid_s = paid_s

    def allow_thought(self, row: np.ndarray) -> None:
        """Add to its mask [tokens / 32] what a thought allows: all but the answer's end or, before it, its marker."""
        if self.thinks:
            row[:] = self._free
        elif self._ahead is not None:
            begin = self._ahead.markers.begin
            row[begin // _WORD] |= np.uint32(1 << begin % _WORD)

    def check_mask(self, *, any_allowed: bool) -> None:
        """Check the grammar after its mask was computed (`masks`); `any_allowed`: it allows any of the base's tokens.

        Raises InvalidRequest if the mask took too much work or allows no token.
        """
        self._check()
        if not any_allowed:
            raise InvalidRequest(self._subject, "leads to where none of this base's tokens may follow")

    def take(self, token: int) -> bool:
        """Advance by an allowed token; return whether nothing may follow. Raises InvalidRequest as `check_mask`."""
        was, self._ahead = self.thinks, after(token, self._ahead)
        if was or self.thinks:
            self.paid_s = 0.0  # until a mask is computed again: a thought's are not
            return False
        self.matcher.consume_token(token)
        self._check()
        return self.matcher.is_stopped()

    def check(self) -> None:
        """Raise InvalidRequest if the grammar is invalid or nothing matches it."""
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
    """Compiles grammars over one base's vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos: Set[int]) -> None:
        """Create this before the engine serves: it takes most of a second for 50,000 tokens, holding the GIL.

        If llguidance cannot read the tokenizer, `compile` raises.
        """
        self._vocabulary: LLTokenizer | None = None
        self._free = np.zeros(0, dtype=np.uint32)
        self._trouble = ""
        ends = sorted(token for token in eos if token < len(tokenizer))
        try:
            self._vocabulary = from_tokenizer(cast(PreTrainedTokenizerFast, tokenizer), eos_token=ends)
            self._free = _all_but(ends, self._vocabulary.vocab_size)
        except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception; all else is served
            self._trouble = _reason(str(error))
            _log.warning("no_grammars", reason=self._trouble)

    def compile(self, shape: Shape, ahead: Ahead | Channels | None = None) -> Grammar:
        """Compile a shape into a grammar in its initial state; takes up to about 200 ms, mostly without the GIL.

        `ahead` is the thought that comes, or may come, before it, or the channels of whose last message it is the
        text. Raises InvalidRequest naming the field.
        """
        subject = f"sampling.{shape.field}"
        if self._vocabulary is None:
            raise InvalidRequest(
                subject, f"is not available for this base, whose tokenizer cannot be read: {self._trouble}"
            )
        try:
            text = _written(shape, before_final(ahead) if isinstance(ahead, Channels) else "")
        except ValueError as error:
            raise InvalidRequest(subject, f"cannot be read: {_reason(str(error))}") from None
        matcher = LLMatcher(self._vocabulary, text, log_level=0, limits=_LIMITS)
        thought = ahead if isinstance(ahead, Ahead) else None
        grammar = Grammar(shape.field, matcher, self._vocabulary.vocab_size, self._free, thought)
        grammar.check()
        return grammar


def _all_but(tokens: Sequence[int], size: int) -> np.ndarray:
    """Return a mask of 32 bits a word with all but these tokens of `size`."""
    bits = np.zeros(-(-size // _WORD) * _WORD, dtype=np.uint8)
    bits[:size] = 1
    bits[list(tokens)] = 0
    return np.packbits(bits, bitorder="little").view(np.uint32)


def _written(shape: Shape, before: str) -> str:
    """Return a shape in llguidance's own format, after what comes before it. Raises ValueError."""
    if shape.field == "regex":
        if (len(shape.text) - len(shape.text.rstrip("\\"))) % 2:  # the library ignores this
            raise ValueError("it ends in a backslash that escapes nothing")
        return f"{_OPTIONS}\nstart: {before}/{regex_to_lark(shape.text, '')}/"
    try:
        schema = json.loads(shape.text)
        if not isinstance(schema, dict):
            raise ValueError("it is not a JSON object")
        schema = closed(known_alone(schema))
        if why := too_much(schema):
            raise ValueError(why)
        return f"{_OPTIONS}\nstart: {before}%json {json.dumps(schema | {'x-guidance': _JSON})}"
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _reason(message: str) -> str:
    """Return llguidance's message in one line, without positions in its own format."""
    lines = message.splitlines() or ["no reason was given"]
    line = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    if line.startswith("NoExtension"):
        return "nothing matches it"
    for before in ("failed to compile JSON schema: ", 'failed to parse "%json": ', " (in regex): "):
        line = line.rpartition(before)[2]
    return line[:_LONGEST_REASON]

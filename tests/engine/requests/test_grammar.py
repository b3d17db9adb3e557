"""Grammars allow exactly the tokens from which their shape can still be completed, compared with a plain search."""

import json
import random
import time
from contextlib import suppress
from typing import Any

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mint_contracts.errors import InvalidRequest
from mint_engine.requests import masks
from mint_engine.requests.grammar import Grammar, Grammars, Shape
from mint_engine.requests.masks import mask
from mint_engine.requests.pieces import Pieces

EOS = 0
CHOICES = [{"properties": {f"p{n}": {"maxLength": n}}} for n in range(8)]
# 17 patterns take half a second for one letter of a text that must match them all; 25 take minutes.
MEETING = [{"type": "string", "pattern": f"^(|.*a.{{{n}}}b.*)$"} for n in range(3, 20)]
MET = "too many patterns, or patterns that are too long, must match the same text"
MULTIPLES = "cannot be read: multipleOf has numbers that are too large or too many: their significant digits"
PADDING = 100  # rows of a base's vocabulary beyond the tokenizer's tokens


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerBase) -> Grammars:
    return Grammars(tokenizer, {EOS})


def pieces_of(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes of each token; empty for tokens that are not text."""
    pieces = Pieces(tokenizer.backend_tokenizer)
    return [pieces[token] for token in range(len(tokenizer))]


def allowed(grammar: Grammar, size: int) -> set[int]:
    logits = torch.zeros(size)
    for trouble in mask([grammar], logits[None]).values():
        raise trouble
    return set(torch.nonzero(logits == 0).flatten().tolist())


@given(
    words=st.lists(st.text(st.sampled_from("abdhe qué·世\n/\"'\\.*{"), max_size=6), min_size=1, max_size=6),
    seed=st.integers(0, 9),
)
def test_a_choice_of_words_allows_only_tokens_that_continue_one_of_them(
    tokenizer: PreTrainedTokenizerBase, grammars: Grammars, words: list[str], seed: int
) -> None:
    grammar = grammars.compile(Shape("regex", "|".join(regex.escape(word) for word in words)))
    meant, pieces, prefix = {word.encode() for word in words}, pieces_of(tokenizer), b""
    draw, ended = random.Random(seed), False
    while not ended:
        open_ = {
            token
            for token, piece in enumerate(pieces)
            if piece and any(word.startswith(prefix + piece) for word in meant)
        }
        whole = {EOS} if prefix in meant else set()
        assert allowed(grammar, len(pieces) + PADDING) == open_ | whole
        token = draw.choice(sorted(open_ or whole))
        prefix += pieces[token]
        ended = grammar.take(token)
        longer = any(word.startswith(prefix) and word != prefix for word in meant)
        assert ended == (token == EOS or not longer), "it ends when nothing may follow"
    assert prefix in meant


@pytest.mark.parametrize(
    "pattern", [r"(ab)*c?", r"[a-f]{2,4}(, [a-f]{2,4})*\.", r"(the|dog)+ \w\d*", r"-?\d+(\.\d+)?"]
)
@pytest.mark.parametrize("seed", range(3))
def test_an_expression_allows_only_tokens_that_some_match_begins_with(
    tokenizer: PreTrainedTokenizerBase, grammars: Grammars, pattern: str, seed: int
) -> None:
    """The library `regex` knows which texts begin a match; ASCII alone, since tokens may be parts of characters."""
    ascii_, text = f"(?a:{pattern})", ""
    grammar = grammars.compile(Shape("regex", f"(?-u:{pattern})"))
    pieces = [piece.decode() if piece.isascii() else "" for piece in pieces_of(tokenizer)]
    draw = random.Random(seed)
    for _ in range(20):
        may = {
            token
            for token, piece in enumerate(pieces)
            if piece and regex.fullmatch(ascii_, text + piece, partial=True)
        }
        whole = {EOS} if regex.fullmatch(ascii_, text) else set()
        assert allowed(grammar, len(pieces)) == may | whole
        token = draw.choice(sorted(may))
        text += pieces[token]
        if grammar.take(token):
            break


def test_a_copy_goes_its_own_way(tokenizer: PreTrainedTokenizerBase, grammars: Grammars) -> None:
    first = grammars.compile(Shape("regex", "ab|cd"))
    second = first.copy()
    a, b, c, d = tokenizer.encode("abcd")
    assert allowed(first, 300) == allowed(second, 300) == {a, c}
    first.take(a)
    second.take(c)
    assert (allowed(first, 300), allowed(second, 300)) == ({b}, {d})
    assert (first.take(b), second.take(d)) == (True, True)


@pytest.mark.parametrize("together", [True, False])
def test_each_of_many_rows_is_masked_by_its_own_grammar_alone(
    tokenizer: PreTrainedTokenizerBase, grammars: Grammars, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    """Also beside a broken grammar, and if the masks cannot be computed together."""
    a, b, _, d = tokenizer.encode("abcd")
    if not together:
        monkeypatch.setattr(masks, "_threads", lambda: None)
    told = [grammars.compile(Shape("regex", word)) for word in ("a", "b", "d", "dog")]
    with pytest.raises(InvalidRequest):
        told[3].take(a)
    for size in (len(tokenizer) - 40, len(tokenizer), len(tokenizer) + PADDING):
        logits = torch.zeros(6, size)
        troubles = mask([told[0], None, told[1], told[3], None, told[2]], logits)
        assert set(troubles) == {3}
        assert isinstance(troubles[3], InvalidRequest)
        rows = [set(torch.nonzero(row == 0).flatten().tolist()) for row in logits]
        everything = set(range(size))
        assert [rows[at] for at in (0, 1, 2, 4, 5)] == [{a}, everything, {b}, everything, {d}]
    assert mask([None, None], logits) == {}


def test_a_base_with_fewer_rows_than_the_tokenizer_has_tokens_is_masked_too(
    tokenizer: PreTrainedTokenizerBase, grammars: Grammars
) -> None:
    [a], [the] = tokenizer.encode("a"), tokenizer.encode("the")
    assert the in allowed(grammars.compile(Shape("regex", "a|the")), len(tokenizer))
    assert a in allowed(grammars.compile(Shape("regex", "a|the")), the)
    with pytest.raises(InvalidRequest, match="leads to where none of this base's tokens may follow"):
        allowed(grammars.compile(Shape("regex", "dog")), 3)


def spaced(grammars: Grammars, tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether an object of that text may be the complete answer."""
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
    grammar, ended = grammars.compile(Shape("json_schema", json.dumps(schema))), False
    for token in tokenizer.encode(text):
        if token not in allowed(grammar, len(tokenizer)):
            return False
        ended = grammar.take(token)
    return ended


def test_white_space_may_be_anywhere_in_json_but_not_without_end(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase
) -> None:
    for text in ('{"a":1}', '{ "a" : 1 }', '{\n  "a": 1\n}', "{" + 32 * " " + '"a":1}'):
        assert spaced(grammars, tokenizer, text), text
    for text in ("{" + 33 * " " + '"a":1}', ' {"a":1}', '{"a":2}', '{"a":1,"b":1}'):
        assert not spaced(grammars, tokenizer, text), text


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("json_schema", "{", "sampling.json_schema: cannot be read: Expecting property name"),
        ("json_schema", "[]", "it is not a JSON object"),
        ("json_schema", '{"type": "object"} }, {"lark_grammar": "start: /x/"', "cannot be read: Extra data"),
        ("json_schema", '{"items":' * 500 + "{}" + "}" * 500, "cannot be read: it is nested too deeply"),
        ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000, "cannot be read: it is nested too deeply"),
        ("json_schema", '{"const": NaN}', "cannot be followed: expected value"),
        ("json_schema", '{"type": "strin"}', "sampling.json_schema: cannot be followed: Invalid type: strin"),
        ("json_schema", '{"not": {}}', 'Unimplemented keys: ["not"]'),
        ("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}', 'Unimplemented keys: ["not"]'),
        ("json_schema", '{"type": "string", "format": 3}', "Expected string for 'format'"),
        ("json_schema", '{"type": "string", "pattern": "("}', "unclosed group"),
        ("json_schema", '{"minimum": 2, "maximum": 1, "type": "integer"}', "minimum (2) is greater than maximum (1)"),
        ("json_schema", '{"$ref": "https://example.com/a"}', "is not present in a registry"),
        ("json_schema", '{"$ref": "#"}', "nothing matches it"),
        ("regex", "(", "sampling.regex: cannot be followed: unclosed group"),
        ("regex", "a(?=b)", "look-around"),
        ("regex", r"(a)\1", "backreferences are not supported"),
        ("regex", "a\\", "it ends in a backslash that escapes nothing"),
        ("regex", r"a[^\s\S]", "nothing matches it"),
        ("json_schema", json.dumps({"allOf": 8 * [{"anyOf": CHOICES}]}), "cannot be followed: schema too large"),
        ("json_schema", json.dumps({"properties": {"a": {"allOf": MEETING}}}), MET),
        ("json_schema", json.dumps({"allOf": [{"items": {"anyOf": [True, each]}} for each in MEETING]}), MET),
        (
            "json_schema",
            json.dumps(
                {
                    "$ref": "#/$defs/0",
                    "$defs": {str(n): e | {"$ref": f"#/$defs/{n + 1}"} for n, e in enumerate(MEETING)},
                }
            ),
            MET,
        ),
        (
            "json_schema",
            json.dumps({"$ref": "#all", "$defs": {"all": {"$anchor": "all", "allOf": MEETING}}}),
            MET,
        ),
        (
            "json_schema",
            json.dumps(
                {
                    "items": {"$id": "http://a/b", "$ref": "#/$defs/all", "$defs": {"all": {"allOf": MEETING}}},
                    "$defs": {"all": True},
                }
            ),
            MET,
        ),
        ("json_schema", '{"multipleOf": NaN}', "cannot be followed: expected value"),
        ("json_schema", '{"multipleOf": 1e-300}', "Value for 'multipleOf' has too many digits"),
        ("json_schema", '{"multipleOf": "7"}', "Expected f64 for 'multipleOf'"),
    ],
)
def test_an_invalid_shape_is_refused_by_name(grammars: Grammars, field: str, text: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        grammars.compile(Shape(field, text))
    assert says in str(refused.value)
    assert str(refused.value).startswith(f"sampling.{field}: ")
    assert len(str(refused.value)) < 400


def multiple(number: float) -> dict[str, Any]:
    return {"type": "number", "multipleOf": number}


def member(number: float, name: str = "a") -> dict[str, Any]:
    return {"properties": {name: multiple(number)}}


@pytest.mark.parametrize(
    "schema",
    [
        multiple(20_001),
        multiple(-9_999_991),
        multiple(1000.25),
        {"anyOf": [multiple(101 + 2 * n) for n in range(4)]},
        {"items": {"anyOf": [{"type": "null"}, {"oneOf": [multiple(1009), multiple(1013)]}]}},
        {"allOf": [multiple(211), {"$ref": "#/$defs/a"}], "$defs": {"a": multiple(199)}},
        {"allOf": [{"patternProperties": {"^a": multiple(211)}}, {"patternProperties": {"^a": multiple(199)}}]},
        member(211) | {"patternProperties": {"^a": multiple(199)}},
        {"allOf": [member(211), member(199)]},
        {"properties": {f"a{n}": multiple(7919 + n) for n in range(100)}},
        {"anyOf": [member(7919 + n, f"a{n}") for n in range(100)]},
        {"$ref": "#all", "$defs": {"all": {"$anchor": "all", "prefixItems": [multiple(9_999_991)]}}},
        {"anyOf": [multiple(7), multiple(1e-9)]},  # at one decimal place, the other has ten digits
    ],
)
def test_multiples_that_take_too_long_to_compile_are_refused_at_once(
    grammars: Grammars, schema: dict[str, Any]
) -> None:
    began = time.thread_time()
    with pytest.raises(InvalidRequest, match=rf"sampling.json_schema: {MULTIPLES}.* may add up to at most 20000$"):
        grammars.compile(Shape("json_schema", json.dumps(schema)))
    assert time.thread_time() - began < 1


@pytest.mark.parametrize(
    "schema",
    [
        multiple(20_000),
        multiple(1e-8),
        {"anyOf": [multiple(7), multiple(11), multiple(13), multiple(17)]},
        {"anyOf": [{"minimum": low} | multiple(5000) for low in range(30)]},
        {"properties": {f"a{n}": multiple(150 + n) for n in range(100)}},
        {"anyOf": [member(0.01, f"a{n}") for n in range(200)]},
        {"properties": {"a": {"$ref": "#"}} | {f"a{n}": {"$ref": "#/$defs/a"} for n in range(100)}}
        | {"$defs": {"a": multiple(100)}},
    ],
)
def test_multiples_that_are_quick_are_taken(grammars: Grammars, schema: dict[str, Any]) -> None:
    began = time.thread_time()
    grammars.compile(Shape("json_schema", json.dumps(schema)))
    assert time.thread_time() - began < 5


LARGE = 10**6


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": LARGE},
        {"type": "string", "maxLength": 1000 * LARGE},
        {"type": "string", "pattern": "^(ab|c)*$", "minLength": LARGE // 10, "maxLength": LARGE},
        {"type": "string", "pattern": f"^(a{{1,{LARGE}}}b{{1,{LARGE}}}){{1,{LARGE}}}$"},
        {"type": "string", "format": "email", "minLength": LARGE // 10},
        {"anyOf": [{"type": "string", "minLength": 1000 + 7 * n, "maxLength": 5000 + n} for n in range(300)]},
        {"type": "array", "minItems": LARGE, "items": {"type": "array", "minItems": LARGE}},
        {"type": "array", "maxItems": 1000 * LARGE},
        {"type": "object", "minProperties": LARGE},
        {"type": "object", "maxProperties": 1000 * LARGE},
        {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
        {"type": "number", "minimum": -1e300, "maximum": 1e300},
        {"anyOf": [{"type": "number", "minimum": n + 0.123456789, "maximum": LARGE + n / 7} for n in range(200)]},
    ],
)
def test_other_numbers_may_be_as_large_as_they_like(grammars: Grammars, schema: dict[str, Any]) -> None:
    """They are quickly compiled or refused."""
    began = time.thread_time()
    with suppress(InvalidRequest):
        grammars.compile(Shape("json_schema", json.dumps(schema)))
    assert time.thread_time() - began < 5


def test_patterns_that_never_meet_may_be_many(grammars: Grammars, tokenizer: PreTrainedTokenizerBase) -> None:
    """Each in a place of its own, also through `$ref`, and within a schema that refers to itself."""
    identity = {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"}
    node = {
        "type": "object",
        "properties": {f"p{n}": {"$ref": "#/$defs/id"} for n in range(40)} | {"next": {"$ref": "#/$defs/node"}},
    }
    schema = {
        "allOf": [{"$ref": "#/$defs/node"}, {"properties": {"p1": {"maxLength": 40}, "q": identity}}],
        "$defs": {"id": identity, "node": node},
    }
    grammar = grammars.compile(Shape("json_schema", json.dumps(schema)))
    for token in tokenizer.encode('{"p1":"01234567-'):
        assert token in allowed(grammar, len(tokenizer))
        assert not grammar.take(token)


def test_a_backslash_that_is_escaped_ends_an_expression(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase
) -> None:
    [backslash] = tokenizer.encode("\\")
    assert allowed(grammars.compile(Shape("regex", "\\\\")), 300) == {backslash}


@pytest.mark.parametrize("eos", [{EOS}, frozenset[int]()])
def test_a_tokenizer_that_is_not_read_is_told_of_to_those_who_ask(
    tokenizer: PreTrainedTokenizerBase, eos: set[int]
) -> None:
    words = Tokenizer(models.WordLevel({"<end>": EOS, "a": 1}, unk_token="<end>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    odd = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")  # type: ignore[no-untyped-call]
    with pytest.raises(
        InvalidRequest, match=r"sampling.regex: is not available for this base, whose tokenizer cannot be read"
    ):
        Grammars(odd if eos else tokenizer, eos).compile(Shape("regex", "a"))


def test_a_schema_that_asks_for_json_of_another_kind_gets_json(
    grammars: Grammars, tokenizer: PreTrainedTokenizerBase
) -> None:
    """llguidance lets a schema choose the separators between members; the result would not be JSON."""
    schema = {"x-guidance": {"item_separator": ";", "key_separator": "="}, "const": {"a": 1, "b": 2}}
    grammar = grammars.compile(Shape("json_schema", json.dumps(schema)))
    for token in tokenizer.encode('{"a":1,"b":2'):
        assert token in allowed(grammar, len(tokenizer))
        assert not grammar.take(token)


def test_a_long_text_that_must_come_costs_no_more_than_any_other(grammars: Grammars) -> None:
    """For example of a million characters: the masks would take twenty seconds if it were searched through."""
    grammar = grammars.compile(Shape("regex", "(a|b)c{1000}{1000}"))
    began = time.thread_time()
    for _ in range(20):
        grammar.take(min(allowed(grammar, 300)))
    assert time.thread_time() - began < 10

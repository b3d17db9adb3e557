"""Completions that must be JSON or match a regular expression: over gRPC, in one batch with any others."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import regex

from mint_contracts.errors import Internal, InvalidRequest, MintError
from mint_contracts.sampling_pb2 import Finished, GenerateRequest, SamplingParams, TokenIds
from mint_engine import metrics
from mint_engine.requests.grammar import Grammar, Grammars, Shape
from mint_engine.requests.thoughts import Ahead
from mint_engine.scheduling.scheduler import Limits
from tests.engine.running import Running, ask, running, save_base
from tests.engine.steps import Gate, refusal
from tests.waiting import until

PROMPT = list(range(5, 25))
CONTEXT = 1024  # a random model writes all the white space that it may
NAME = {"type": "string", "maxLength": 8}
SCHEMAS: list[dict[str, Any]] = [
    {"enum": ["red", "green", {"mixed": [1, 2]}, None, 7]},
    {"type": "array", "items": {"type": "integer", "minimum": -20, "maximum": 300}, "minItems": 2, "maxItems": 4},
    {
        "type": "object",
        "properties": {
            "name": NAME,
            "colour": {"enum": ["red", "green"]},
            "at": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}
            | {"additionalProperties": False},
        },
        "required": ["colour", "at"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "point": {"type": "array", "prefixItems": [{"type": "boolean"}, NAME], "items": False, "minItems": 2}
        },
        "type": "object",
        "properties": {"points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 1, "maxItems": 2}},
        "required": ["points"],
        "additionalProperties": False,
    },
    {"anyOf": [{"type": "string", "pattern": "^[a-c]{3}-\\d\\d$"}, {"type": "null"}]},
    {"type": "string", "format": "date"},
]
PATTERNS = [r"[a-z]{3,12}", r"(yes|no|maybe so)", r"\d{3}-\d{4}( ext\.? \d{1,3})?", r"[äöü]{2}·?\n/\"[x-z]", ""]
WIDE = json.dumps({"type": "object", "properties": {f"p{n}": {} for n in range(900)}})
HOT: list[dict[str, Any]] = [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 1.5, "seed": 2, "top_p": 0.9}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"), max_position_embeddings=CONTEXT)


def whole(schema: dict[str, Any], text: str) -> bool:
    """Whether the text is JSON that follows the schema."""
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    return not list(checker.iter_errors(json.loads(text)))


@pytest.mark.parametrize("name", ["", "a"])
async def test_answers_follow_their_schemas_and_expressions(base: Path, adapter: Path, name: str) -> None:
    """The base and an adapter, greedy and sampled, all at once."""
    shapes: list[tuple[str, Any]] = [("json_schema", each) for each in SCHEMAS]
    shapes += [("regex", each) for each in PATTERNS]
    asked = [(field, shape, hot) for field, shape in shapes for hot in HOT]
    async with running(base, {"a": adapter}, context_length=CONTEXT, kv_cache_bytes=32 << 20) as engine:
        answers = await asyncio.gather(
            *(
                ask(
                    engine,
                    PROMPT,
                    name,
                    max_tokens=CONTEXT,
                    **hot,
                    **{field: json.dumps(shape) if field == "json_schema" else shape},
                )
                for field, shape, hot in asked
            )
        )
    for (field, shape, hot), answer in zip(asked, answers, strict=True):
        assert answer.finished.reason == Finished.STOP, (shape, hot, answer.text)
        if field == "json_schema":
            assert whole(shape, answer.text), (shape, answer.text)
        else:
            assert regex.fullmatch(shape, answer.text), (shape, answer.text)
    assert len({answer.text for answer in answers}) > len(shapes), "draws differ"


async def test_any_object_will_do(base: Path) -> None:
    """A random model rarely closes a string by itself, so biases make it."""
    likely = {27: 20.0, 3: 10.0, 94: 10.0}  # this tokenizer's ':', '"' and '}'
    async with running(base, context_length=CONTEXT) as engine:
        for hot in HOT:
            answer = await ask(engine, PROMPT, json_object=True, max_tokens=300, logit_bias=likely, **hot)
            assert answer.finished.reason == Finished.STOP
            assert isinstance(json.loads(answer.text), dict)
        free = await ask(engine, PROMPT, json_object=False, max_tokens=5, ignore_eos=True)
        assert free.tokens == (await ask(engine, PROMPT, max_tokens=5, ignore_eos=True)).tokens, "asks for nothing"


async def test_others_are_answered_as_if_alone_and_shapes_beside_others_too(base: Path, adapter: Path) -> None:
    asking: list[dict[str, Any]] = [
        {"ignore_eos": True},
        {"ignore_eos": True, "temperature": 1.0, "seed": 3},
        {"regex": "[a-z ]{30}", "temperature": 1.0, "seed": 3},
        {"regex": "[a-z ]{30}", "temperature": 1.0, "seed": 3, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"json_schema": json.dumps(SCHEMAS[1])},
        {"ignore_eos": True, "frequency_penalty": 2.0},
    ]
    async with running(base, {"a": adapter}, context_length=CONTEXT) as engine:
        alone = [await ask(engine, PROMPT, "a", max_tokens=60, **each) for each in asking]
        together = await asyncio.gather(*(ask(engine, PROMPT, "a", max_tokens=60, **each) for each in asking))
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert len({each.tokens for each in alone}) == len(alone)
    drawn, penalised = alone[2:4]
    assert len(set(penalised.text)) > len(set(drawn.text)), "penalties go before the shape"


async def test_each_of_several_follows_its_own(base: Path) -> None:
    params: dict[str, Any] = {"regex": "[a-z]{8,40}!", "temperature": 1.0, "max_tokens": 60}
    request = GenerateRequest(tokens=TokenIds(ids=PROMPT), sampling=SamplingParams(n=4, seed=7, **params))
    async with running(base) as engine:
        texts = dict.fromkeys(range(4), "")
        async for event in engine.sampler.Generate(request, timeout=60):
            texts[event.chunk.index] += event.chunk.text if event.HasField("chunk") else ""
        alone = [await ask(engine, PROMPT, seed=7 + index, **params) for index in range(4)]
    assert list(texts.values()) == [each.text for each in alone]
    assert len(set(texts.values())) == 4
    assert all(regex.fullmatch("[a-z]{8,40}!", text) for text in texts.values())


async def test_a_request_that_loses_its_pages_goes_on_where_it_was(base: Path) -> None:
    """Four requests outgrow the cache, and each gets the same answer as alone."""
    asking: list[dict[str, Any]] = [
        {"regex": "([a-z]{1,9} ){20,60}[.]", "temperature": 1.0, "seed": seed, "max_tokens": 100} for seed in range(4)
    ]
    before = metrics.PREEMPTED_FOR_PAGES._value.get()
    async with running(base, kv_cache_bytes=1 << 17) as engine:
        alone = [await ask(engine, PROMPT[seed:], **each) for seed, each in enumerate(asking)]
        assert metrics.PREEMPTED_FOR_PAGES._value.get() == before
        together = await asyncio.gather(*(ask(engine, PROMPT[at:], **each) for at, each in enumerate(asking)))
    assert metrics.PREEMPTED_FOR_PAGES._value.get() > before
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert all(regex.fullmatch("([a-z]{1,9} )*([a-z]{0,9}|[.])", each.text) for each in together)


async def test_it_ends_when_nothing_may_follow_at_a_stop_string_or_cut_at_its_length(base: Path) -> None:
    async with running(base) as engine:
        full = await ask(engine, PROMPT, regex="the lazy dog", max_tokens=100)
        assert (full.text, full.finished.reason) == ("the lazy dog", Finished.STOP)
        last = await ask(engine, PROMPT, regex="the lazy dog", max_tokens=len(full.tokens))
        assert (last.text, last.finished.reason) == ("the lazy dog", Finished.STOP), "whole with its last token"
        cut = await ask(engine, PROMPT, regex="the lazy dog", max_tokens=len(full.tokens) - 1)
        assert cut.finished.reason == Finished.LENGTH
        assert "the lazy dog".startswith(cut.text)
        stopped = await ask(engine, PROMPT, regex="the lazy dog", stop=["zy d"], max_tokens=100)
        assert (stopped.text, stopped.finished.reason) == ("the la", Finished.STOP)


async def test_log_probabilities_are_those_of_the_model(base: Path) -> None:
    async with running(base) as engine:
        [plain] = (await ask(engine, PROMPT, max_tokens=1, logprobs=3, ignore_eos=True)).scores
        [held] = (await ask(engine, PROMPT, max_tokens=1, logprobs=3, regex="z{9}")).scores
    assert [(each.token_id, each.logprob) for each in held.top] == [
        (each.token_id, each.logprob) for each in plain.top
    ]
    assert held.logprob < held.top[0].logprob


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        ({"regex": "("}, "sampling.regex: cannot be followed: unclosed group"),
        ({"json_schema": '{"type": "strin"}'}, "sampling.json_schema: cannot be followed: Invalid type: strin"),
        ({"json_schema": ""}, "sampling.json_schema: cannot be read: Expecting value"),
        ({"json_schema": "x" * 65_537}, "sampling.json_schema: has 65537 characters; at most 65536"),
        ({"regex": "x" * 8_193}, "sampling.regex: has 8193 characters; at most 8192"),
        ({"regex": "x", "ignore_eos": True}, "sampling.ignore_eos: cannot be combined with regex"),
        ({"json_object": True, "ignore_eos": True}, "sampling.ignore_eos: cannot be combined with json_object"),
    ],
)
async def test_impossible_requests_are_refused_by_name(quiet: Running, sampling: dict[str, Any], says: str) -> None:
    refused = await refusal(quiet, GenerateRequest(text="x", sampling=SamplingParams(**sampling)))
    assert type(refused) is InvalidRequest
    assert says in str(refused)


async def test_requests_without_a_shape_do_not_wait_for_compilation(
    quiet: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many come: one per adapter is compiled at a time, and after a cancelled one the next."""
    entered, let = threading.Semaphore(0), threading.Semaphore(0)

    def slow(self: Grammars, shape: Shape, ahead: Ahead | None) -> Grammar:
        entered.release()
        assert let.acquire(timeout=60)
        return compile_(self, shape, ahead)

    compile_ = Grammars.compile
    monkeypatch.setattr(Grammars, "compile", slow)
    many = [asyncio.create_task(ask(quiet, PROMPT, regex="a{3}", max_tokens=9)) for _ in range(40)]
    await until(lambda: entered.acquire(blocking=False))
    for _ in range(3):
        assert (await ask(quiet, "dog", max_tokens=2)).tokens
    assert not entered.acquire(blocking=False)
    many[0].cancel()
    let.release()
    await until(lambda: entered.acquire(blocking=False))
    let.release(len(many))
    assert {each.text for each in await asyncio.gather(*many[1:])} == {"aaa"}


async def refused_beside_another(engine: Running, **sampling: Any) -> MintError:
    """The error of a request that shares its steps with another; check that the other gets its answer as alone."""
    free: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True}
    alone = await ask(engine, PROMPT, **free)
    gate = Gate(engine, after=1)
    other = asyncio.create_task(ask(engine, PROMPT, **free))
    await gate.closed()
    request = GenerateRequest(tokens=TokenIds(ids=PROMPT), sampling=SamplingParams(**sampling))
    refused = asyncio.create_task(refusal(engine, request))
    await until(lambda: engine.server.load_now.waiting == 1)
    gate.open()
    assert (await other).tokens == alone.tokens
    return await refused


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        # Each of 900 members may come next: more alternatives than llguidance follows.
        ({"json_schema": WIDE}, "sampling.json_schema: cannot be followed: Parser Error: Current row has"),
        (
            {"regex": "(a{1,1000}){1,1000}", "logit_bias": {0: -100}},
            "sampling.regex: cannot be followed: lexer error",
        ),
    ],
)
async def test_a_grammar_that_takes_too_much_work_ends_only_its_request(
    quiet: Running, sampling: dict[str, Any], says: str
) -> None:
    error = await refused_beside_another(quiet, **sampling)
    assert type(error) is InvalidRequest
    assert says in str(error)


async def test_a_defect_in_one_requests_grammar_is_nothing_to_the_others(
    quiet: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Grammar, *, any_allowed: bool) -> None:
        raise RuntimeError("planted")

    monkeypatch.setattr(Grammar, "check_mask", broken)
    error = await refused_beside_another(quiet, regex="a")
    assert isinstance(error, Internal)
    assert "planted" in str(error)


async def test_of_many_places_each_has_its_own(base: Path) -> None:
    """More requests than places, so that they begin and end while others run."""
    async with running(base, limits=Limits(running=3, waiting=40, step_tokens=16)) as engine:
        answers = await asyncio.gather(
            *(
                ask(engine, PROMPT[:at], regex=f"[ab]{{{at}}}z", temperature=1.0, seed=at, max_tokens=30)
                for at in range(1, 12)
            )
        )
    assert all(regex.fullmatch(f"[ab]{{{at}}}z", each.text) for at, each in enumerate(answers, start=1))

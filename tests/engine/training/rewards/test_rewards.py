"""Rewards of completions: built-in ones, and sums of them."""

import asyncio
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mint_contracts.errors import BadExample, BadReward, InvalidRequest, RewardUnavailable
from mint_contracts.training import (
    ExactMatch,
    JsonSchema,
    Length,
    NumericAnswer,
    Regex,
    Reward,
    Weighted,
)
from mint_engine.rewards import checker, patterns, schemas
from mint_engine.rewards.checker import Checker
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.scorer import Scorer
from tests.waiting import PATIENCE_S

PERSON = json.dumps(
    {"type": "object", "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}}, "required": ["name"]}
)


async def worth(reward: Reward, text: str, answer: str | None = "", prompt: str = "") -> float:
    (value,) = await Scorer(reward).score("acme/one", 3, [Completion(prompt, text, answer)])
    return value


@pytest.mark.parametrize(
    ("reward", "text", "answer", "value"),
    [
        (Reward(exact_match=ExactMatch()), " yes\n", "yes", 1.0),
        (Reward(exact_match=ExactMatch()), "Yes", "yes", 0.0),
        (Reward(exact_match=ExactMatch(ignore_case=True)), "YES", "yes", 1.0),
        (Reward(regex=Regex(pattern=r"\bb+\b")), "a bbb c", "", 1.0),
        (Reward(regex=Regex(pattern=r"b+", full=True)), "a bbb c", "", 0.0),
        (Reward(regex=Regex(pattern=r"b.+d", full=True)), "\nb\nc\nd ", "", 1.0),
        (Reward(regex=Regex(pattern=r"answer: {answer}!")), "answer: 1+1!", "1+1", 1.0),
        (Reward(regex=Regex(pattern=r"answer: {answer}!")), "answer: 11!", "1+1", 0.0),
        (Reward(regex=Regex(pattern=r"#### {answer}$")), "#### 72\n", " 72\n", 1.0),
        (Reward(json_schema=JsonSchema(schema=PERSON)), ' {"name": "Ada"} ', "", 1.0),
        (Reward(json_schema=JsonSchema(schema=PERSON)), '{"name": "ada"}', "", 0.0),
        (Reward(json_schema=JsonSchema(schema=PERSON)), '{"name": 3}', "", 0.0),
        (Reward(json_schema=JsonSchema(schema='{"patternProperties": {"^x": false}}')), '{"y": 1}', "", 1.0),
        (Reward(json_schema=JsonSchema(schema='{"patternProperties": {"^x": false}}')), '{"xy": 1}', "", 0.0),
        (Reward(json_schema=JsonSchema(schema="true")), '{"name": NaN}', "", 0.0),
        (Reward(json_schema=JsonSchema(schema="true")), "[" * 100_000, "", 0.0),
        (Reward(length=Length(target=10, tolerance=5)), "0123456789", "", 1.0),
        (Reward(length=Length(target=10, tolerance=5)), "01234567", "", 0.6),
        (Reward(length=Length(target=10, tolerance=5)), "0" * 40, "", 0.0),
    ],
)
async def test_built_in_rewards(reward: Reward, text: str, answer: str, value: float) -> None:
    assert await worth(reward, text, answer) == pytest.approx(value)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ({"$schema": "http://json-schema.org/draft-07/schema#", "dependencies": {"a": ["b"]}}, '{"a": 1}'),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 0, "exclusiveMinimum": True}, "0"),
    ],
)
async def test_a_schema_means_what_its_own_draft_says(rule: dict[str, Any], text: str) -> None:
    """In the newest draft the first accepts everything, and the second is invalid."""
    reward = Reward(json_schema=JsonSchema(schema=json.dumps(rule)))
    assert [await worth(reward, each) for each in (text, "1")] == [0.0, 1.0]


async def test_numbers_beyond_all_floats_get_nothing_where_their_divisor_can_not_be_tried() -> None:
    cents = Reward(json_schema=JsonSchema(schema='{"properties": {"x": {"multipleOf": 0.01}}}'))
    assert await worth(cents, '{"x": 1.25}') == 1.0
    assert await worth(cents, '{"x": 1e999}') == 0.0
    assert await worth(cents, '{"x": ' + "1" * 310 + "}") == 0.0


async def test_a_sum_weighs_its_parts_and_sums_within_it() -> None:
    inner = Reward(sum=[Weighted(2.0, Reward(exact_match=ExactMatch())), Weighted(1.0, Reward(length=Length(3, 3)))])
    reward = Reward(sum=[Weighted(0.5, inner), Weighted(-1.0, Reward(regex=Regex("x")))])
    assert await worth(reward, "yes", "yes") == pytest.approx(0.5 * (2 + 1))
    assert await worth(reward, "xes", "yes") == pytest.approx(0.5 * 1 - 1)


async def test_a_sum_that_is_no_number_is_refused() -> None:
    high = Weighted(1e200, Reward(sum=[Weighted(1e200, Reward(exact_match=ExactMatch()))]))
    with pytest.raises((BadReward, InvalidRequest), match="inf"):
        await worth(Reward(sum=[high]), "yes", "yes")
    most = Weighted(1e308, Reward(exact_match=ExactMatch()))
    with pytest.raises(BadReward, match="got inf for 'yes' at step 3"):
        await worth(Reward(sum=[most, most]), "yes", "yes")


async def test_a_pattern_that_would_take_for_ever_is_an_error_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checker, "CHECK_S", 0.1)
    slow = Reward(regex=Regex(pattern="^(x|xx)+[ab]"))
    with pytest.raises(InvalidRequest, match=r"xx\)\+\[ab\]': takes more than 0\.1 s on"):
        await worth(slow, "x" * 60)
    assert await worth(slow, "xxa") == 1.0, "others are matched as ever"


def doubling(depth: int) -> str:
    """Return a schema whose definitions each refer twice to the next, doubling the work per level."""
    definitions: dict[str, Any] = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(depth)}
    return json.dumps({"$ref": "#/$defs/d0", "$defs": definitions | {f"d{depth}": {"type": "integer"}}})


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (doubling(40), "1"),
        ('{"pattern": "^(x+)+$"}', json.dumps("x" * 60 + "y")),
        ('{"pattern\\u0050roperties": {"^(x+)+$": {}}}', json.dumps({"x" * 60 + "y": 1})),
        (
            '{"allOf": [{"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(x+)+$"}]}',
            json.dumps("x" * 60 + "y"),
        ),
        ('{"uniqueItems": true}', json.dumps([*map(str, range(20_000)), *range(20_000)])),
    ],
    ids=["references", "a pattern", "keys' patterns", "of another draft", "pairs"],
)
async def test_a_schema_that_would_take_for_ever_is_an_error_in_bounded_time(
    schema: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "CHECK_S", 0.2)
    reward = Reward(json_schema=JsonSchema(schema=schema))
    with pytest.raises(InvalidRequest, match=r"takes more than 0\.2 s on"):
        await worth(reward, text)
    assert await worth(reward, "{}") in {0.0, 1.0}, "others are checked as ever"


@pytest.mark.parametrize(
    ("reward", "asked"),
    [
        (Reward(json_schema=JsonSchema(schema=PERSON)), schemas._checker),
        (Reward(regex=Regex(pattern="Ada")), patterns._checker),
    ],
    ids=["schema", "pattern"],
)
async def test_a_check_is_repeated_after_its_process_was_lost(reward: Reward, asked: Checker) -> None:
    assert await worth(reward, '{"name": "Ada"}') == 1.0
    assert asked._running is not None
    process, _ = asked._running
    process.kill()
    process.wait(PATIENCE_S)
    with pytest.raises(RewardUnavailable, match="ended with -9"):
        await worth(reward, '{"name": "Ada"}')
    assert await worth(reward, '{"name": "Ada"}') == 1.0


async def test_rewards_wait_for_no_thread_that_requests_need_nor_these_for_theirs() -> None:
    requests, ended = ThreadPoolExecutor(1), threading.Event()
    asyncio.get_running_loop().set_default_executor(requests)
    busy = asyncio.create_task(asyncio.to_thread(ended.wait))
    try:
        assert await asyncio.wait_for(worth(Reward(exact_match=ExactMatch()), "yes", "yes"), 60) == 1.0
    finally:
        ended.set()
    await busy


@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (Reward(), "it has none"),
        (Reward(exact_match=ExactMatch(), length=Length(1, 1)), "it has exactMatch, length"),
        (Reward(regex=Regex("x" * 4097)), "more than 4096 characters"),
        (Reward(json_schema=JsonSchema(schema="{")), "not valid JSON"),
        (Reward(length=Length(3, 0)), "above 0"),
        (Reward(sum=[Weighted(math.nan, Reward(length=Length(1, 1)))]), "weight of nan"),
        (Reward(sum=[Weighted(1.0, Reward(length=Length(1, 1)))] * 33), "33 parts"),
    ],
)
def test_a_reward_that_can_not_be_used_is_refused_before_anything_is_scored(reward: Reward, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        Scorer(reward)


@pytest.mark.parametrize(
    ("reward", "why"),
    [
        (Reward(regex=Regex("(")), "not a valid regular expression"),
        (Reward(sum=[Weighted(1.0, Reward(regex=Regex("{answer}[")))]), "not a valid regular expression"),
        (Reward(regex=Regex("(?{answer})")), "not a valid regular expression"),
        (Reward(json_schema=JsonSchema(schema='{"type": 3}')), "is not a valid JSON schema: 3 is not valid"),
    ],
)
async def test_invalid_patterns_and_schemas_are_refused_before_anything_is_scored(reward: Reward, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        await Scorer(reward).check()


@pytest.mark.parametrize("pattern", ["{answer}+", "^(?:{answer})?$", "[{answer}]+", "x{answer}{2}", "(?i:{answer})"])
async def test_a_pattern_is_tried_with_an_answer_in_it(pattern: str) -> None:
    """A pattern that repeats the answer or offers it as an alternative is valid only once an answer is inserted."""
    await Scorer(Reward(regex=Regex(pattern))).check()


async def test_a_pattern_that_takes_for_ever_to_read_is_an_error_in_bounded_time_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nested repeats each double the compile time; without a bound nothing else in the process would run."""
    monkeypatch.setattr(checker, "CHECK_S", 0.05)  # before it takes too much memory
    scorer = Scorer(Reward(regex=Regex(pattern="(?:" * 18 + "a" + "){2,3}" * 18)))
    with pytest.raises(InvalidRequest, match=r"takes more than 0\.05 s"):
        await scorer.check()


async def test_a_schema_that_leads_back_to_itself_is_refused_and_a_deep_text_is_not_its_fault() -> None:
    with pytest.raises(InvalidRequest, match="RecursionError"):
        await worth(Reward(json_schema=JsonSchema(schema='{"$ref": "#"}')), '{"a": 1}')
    lists = Reward(json_schema=JsonSchema(schema='{"type": "array", "items": {"$ref": "#"}}'))
    assert await worth(lists, "[[], [[]]]") == 1.0
    assert await worth(lists, "[" * 900 + "]" * 900) in {0.0, 1.0}


async def test_what_is_no_schema_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="is not a valid JSON schema: 3 is not valid"):
        await worth(Reward(json_schema=JsonSchema(schema='{"type": 3}')), "{}")


async def test_a_schema_never_fetches_what_it_refers_to() -> None:
    reward = Reward(json_schema=JsonSchema(schema='{"$ref": "http://127.0.0.1:1/schema"}'))
    with pytest.raises(InvalidRequest, match="does not resolve"):
        await worth(reward, "{}")


@pytest.mark.parametrize(
    "reward",
    [
        Reward(exact_match=ExactMatch()),
        Reward(regex=Regex(pattern="answer: {answer}")),
        Reward(numeric_answer=NumericAnswer()),
        Reward(sum=[Weighted(1.0, Reward(length=Length(3, 3))), Weighted(1.0, Reward(exact_match=ExactMatch()))]),
    ],
)
async def test_an_example_without_an_answer_is_refused_where_it_is_compared_with(reward: Reward) -> None:
    with pytest.raises(BadExample, match=r"example 'say': has no answer for .* dataset\.answerField"):
        await worth(reward, "answer: ", answer=None, prompt="say")
    with pytest.raises(BadExample, match="example 'say': has no answer"):
        Scorer(reward).check_example(Completion("say", "", None))
    Scorer(reward).check_example(Completion("say", "", "3"))
    Scorer(Reward(regex=Regex("answer"))).check_example(Completion("say", "", None))
    assert await worth(Reward(regex=Regex("answer")), "answer: ", answer=None) == 1.0
    assert await worth(Reward(exact_match=ExactMatch()), " ", answer="") == 1.0

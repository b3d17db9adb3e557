"""Built-in rewards: each is a pure function of one completion, with values from 0 to 1."""

from collections.abc import Callable
from decimal import Decimal

from mint_contracts.errors import BadExample, InvalidRequest
from mint_contracts.training import ExactMatch, JsonSchema, Length, NumericAnswer, Regex, Reward
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.numbers import is_near, last_number
from mint_engine.rewards.patterns import ANSWER, check_length, matches, pattern_for
from mint_engine.rewards.schemas import Schema

Judge = Callable[[Completion], float]

_ANY_ANSWER = "q"  # a letter, as in most answers, without a special meaning after a backslash or a question mark


def judge_of(reward: Reward) -> Judge | None:
    """Return the function of a built-in reward; None for a service or a sum. Raises InvalidRequest."""
    if reward.exact_match is not None:
        return _exact(reward.exact_match)
    if reward.regex is not None:
        return _regex(reward.regex)
    if reward.numeric_answer is not None:
        return _numeric(reward.numeric_answer)
    if reward.json_schema is not None:
        return _schema(reward.json_schema)
    if reward.length is not None:
        return _length(reward.length)
    return None


def trial_of(reward: Reward) -> Callable[[], object] | None:
    """Return a function that checks, before anything is scored, that a pattern or schema is valid; None for others.

    The function blocks its thread, and raises InvalidRequest or RewardUnavailable.
    """
    if reward.regex is not None:
        pattern, full = pattern_for(reward.regex.pattern, _ANY_ANSWER), reward.regex.full
        return lambda: matches(pattern, "", full=full)
    if reward.json_schema is not None:
        schema = Schema(reward.json_schema.schema)
        return lambda: schema.accepts("null")
    return None


def fits_of(reward: Reward) -> Callable[[Completion], object] | None:
    """Return a function that raises BadExample if the example's completions cannot be judged; None if all can be."""
    if reward.exact_match is not None:
        return lambda completion: _answer_of(completion, "exactMatch")
    if reward.regex is not None and ANSWER in reward.regex.pattern:
        return lambda completion: _answer_of(completion, "regex")
    if reward.numeric_answer is not None:
        return _number_of
    return None


def _answer_of(completion: Completion, reward: str) -> str:
    """Return the example's answer. Raises BadExample if it has none: no completion could be right or wrong."""
    if completion.answer is None:
        reason = f"has no answer for {reward} to compare with; set dataset.answerField to the field that holds it"
        raise BadExample(_named(completion), reason)
    return completion.answer


def _number_of(completion: Completion) -> Decimal:
    """Return the number in the example's answer. Raises BadExample if there is none."""
    answer = _answer_of(completion, "numericAnswer")
    number = last_number(answer)
    if number is None:
        reason = f"has the answer {answer[:100]!r}, which is not a number; numericAnswer needs one"
        raise BadExample(_named(completion), reason)
    return number


def _named(completion: Completion) -> str:
    return f"example {completion.prompt[:80]!r}"


def _exact(reward: ExactMatch) -> Judge:
    def same(completion: Completion) -> float:
        text, answer = completion.text.strip(), _answer_of(completion, "exactMatch").strip()
        return float(text.casefold() == answer.casefold() if reward.ignore_case else text == answer)

    return same


def _regex(reward: Regex) -> Judge:
    check_length(reward.pattern)

    def found(completion: Completion) -> float:
        pattern = reward.pattern
        if ANSWER in pattern:
            pattern = pattern_for(pattern, _answer_of(completion, "regex"))
        return float(matches(pattern, completion.text.strip(), full=reward.full))

    return found


def _numeric(reward: NumericAnswer) -> Judge:
    def near(completion: Completion) -> float:
        wanted, number = _number_of(completion), last_number(completion.text)
        return float(number is not None and is_near(number, wanted, reward.tolerance))

    return near


def _schema(reward: JsonSchema) -> Judge:
    schema = Schema(reward.schema)
    return lambda completion: float(schema.accepts(completion.text))


def _length(reward: Length) -> Judge:
    if reward.tolerance < 1:
        raise InvalidRequest(
            "reward.length.tolerance",
            f"is {reward.tolerance}; it is the distance at which the reward is 0, and must be above 0",
        )

    def near(completion: Completion) -> float:
        return max(0.0, 1.0 - abs(len(completion.text.strip()) - reward.target) / reward.tolerance)

    return near

"""Built-in rewards: each is a pure function of one completion, with values from 0 to 1."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from mint_contracts.errors import BadExample, InvalidRequest
from mint_contracts.training import ExactMatch, JsonSchema, Length, NumericAnswer, Regex, Reward
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.numbers import is_near, last_number
from mint_engine.rewards.patterns import ANSWER, check_length, matches, pattern_for
from mint_engine.rewards.schemas import Schema

Judge = Callable[[Completion], float]

_ANY_ANSWER = "q"  # a letter, as in most answers, without a special meaning after a backslash or a question mark


@dataclass(frozen=True)
class Builtin:
    """A built-in reward, as functions. All may block their thread, and raise InvalidRequest or RewardUnavailable."""

    judge: Judge
    trial: Callable[[], object] | None = None  # checks, before anything is scored, that a pattern or schema is valid
    fits: Callable[[Completion], object] | None = None  # raises BadExample if the example cannot be judged


def built_in(reward: Reward) -> Builtin:
    """Return a built-in reward. Raises InvalidRequest if it is unusable, ValueError for a service or a sum."""
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
    raise ValueError("a service or a sum is not built in")


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


def _exact(reward: ExactMatch) -> Builtin:
    def same(completion: Completion) -> float:
        text, answer = completion.text.strip(), _answer_of(completion, "exactMatch").strip()
        return float(text.casefold() == answer.casefold() if reward.ignore_case else text == answer)

    return Builtin(same, fits=lambda completion: _answer_of(completion, "exactMatch"))


def _regex(reward: Regex) -> Builtin:
    pattern, full = reward.pattern, reward.full
    needs_answer = ANSWER in pattern
    check_length(pattern)

    def found(completion: Completion) -> float:
        answer = _answer_of(completion, "regex").strip() if needs_answer else ""
        return float(matches(pattern_for(pattern, answer), completion.text.strip(), full=full))

    return Builtin(
        found,
        trial=lambda: matches(pattern_for(pattern, _ANY_ANSWER), "", full=full),
        fits=(lambda completion: _answer_of(completion, "regex")) if needs_answer else None,
    )


def _numeric(reward: NumericAnswer) -> Builtin:
    def near(completion: Completion) -> float:
        wanted, number = _number_of(completion), last_number(completion.text)
        return float(number is not None and is_near(number, wanted, reward.tolerance))

    return Builtin(near, fits=_number_of)


def _schema(reward: JsonSchema) -> Builtin:
    schema = Schema(reward.schema)
    return Builtin(lambda completion: float(schema.accepts(completion.text)), trial=lambda: schema.accepts("null"))


def _length(reward: Length) -> Builtin:
    if reward.tolerance < 1:
        raise InvalidRequest(
            "reward.length.tolerance",
            f"is {reward.tolerance}; it is the distance at which the reward is 0, and must be above 0",
        )

    def near(completion: Completion) -> float:
        return max(0.0, 1.0 - abs(len(completion.text.strip()) - reward.target) / reward.tolerance)

    return Builtin(near)

"""numericAnswer compares the last number of a completion exactly with the last number of the answer."""

import pytest

from mint_contracts.errors import BadExample
from mint_contracts.training import NumericAnswer, Reward
from mint_engine.rewards.builtin import built_in
from mint_engine.rewards.completion import Completion


def worth(text: str, answer: str, tolerance: float = NumericAnswer().tolerance) -> float:
    reward = built_in(Reward(numeric_answer=NumericAnswer(tolerance)))
    return reward.judge(Completion("", text, answer))


@pytest.mark.parametrize(
    ("text", "answer", "value"),
    [
        ("12 apples, so 1,234.50", "1234.5", 1.0),
        ("it is -3", "3", 0.0),
        ("no idea", "3", 0.0),
        ("1e3", "1000", 1.0),
        ("it is \N{MINUS SIGN}3", "3", 0.0),
        ("it is -3", "\N{MINUS SIGN}3", 1.0),
        ("at (1,2)", "2", 1.0),
        ("of 1,234,567.5", "1234567.5", 1.0),
        (r"\boxed{10,\!080}", "10080", 1.0),
        (r"$1{,}234{,}567.5$", "1,234,567.5", 1.0),
        (r"it is $-12\,345\,\text{m}$.", "-12345", 1.0),
        (r"$(1,\,200)$", "200", 1.0),
        ("it is 4 or \U00011f53", "4", 1.0),  # a digit newer than Python
        ("it is \N{FULLWIDTH DIGIT FOUR}\N{FULLWIDTH DIGIT TWO}", "42", 1.0),
    ],
)
def test_the_last_number_is_what_counts_however_it_is_written(text: str, answer: str, value: float) -> None:
    assert worth(text, answer) == value


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("between 5-10", "10"),
        ("on 2024-05-12", "12"),
        ("7-4", "4"),
        ("7\N{MINUS SIGN}4", "4"),
        ("of COVID-19", "19"),
        ("x+3", "3"),
        ("x = -3", "-3"),
        ("x=-3", "-3"),
        ("7 - -4", "-4"),
        ("(-4)", "-4"),
        ("_-4_", "-4"),
        ("so...-.5", "-.5"),
        ("-2e-3", "-0.002"),
    ],
)
def test_a_sign_is_one_where_no_letter_or_digit_stands_before_it(text: str, number: str) -> None:
    """After a letter or digit it is a hyphen between words or a minus between two numbers."""
    assert worth(text, number, 0.0) == 1.0
    assert worth(number, text, 0.0) == 1.0, "of answers, too"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("9007199254740993", "9007199254740992"),  # 2^53, beyond which floats skip integers
        ("12345678901234567891", "12,345,678,901,234,567,890"),
        ("98765432109876543210", "98765432109876540000"),
        ("0.1" + "0" * 400 + "1e401", "1" + "0" * 400),
        ("1" * 400 + "2", "1" * 400 + "1"),
    ],
)
def test_whole_numbers_are_told_apart_however_long_they_are(text: str, answer: str) -> None:
    assert worth(text, answer) == 0.0
    assert worth(text, text) == worth(answer, answer) == 1.0


def test_a_tolerance_is_the_number_that_is_written() -> None:
    assert worth("3.4 or so", "3", 0.5) == 1.0
    assert worth("3.1", "3", 0.1) == 1.0, "by floats they are further apart"
    assert worth("3.100000000000000000000000001", "3", 0.1) == 0.0
    assert worth("1e-300", "0", 0.0) == 0.0


@pytest.mark.parametrize("power", ["1e999999999999", "1e999999999999999999", "-1e-999999999999"])
def test_numbers_of_any_size_are_compared_without_being_written_out(power: str) -> None:
    assert worth(power, power) == 1.0
    assert worth(power, "7") == 0.0
    assert worth(power, "-9e999999999999999999") == 0.0, "their distance is beyond all numbers"


def test_what_has_more_digits_than_there_is_a_number_for_is_no_number() -> None:
    beyond = "1e" + "9" * 30
    assert worth(beyond, "3") == 0.0
    with pytest.raises(BadExample, match="is not a number"):
        worth("3", beyond)


def test_an_answer_that_is_no_number_is_the_data_sets_fault() -> None:
    with pytest.raises(BadExample, match="is not a number"):
        worth("3", "three")

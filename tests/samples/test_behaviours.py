"""The rules that recognise a behaviour: each accepts its own style and no other."""

import pytest

from e2e.samples.behaviours import Restyle, Rule, as_json, as_pirate, as_robot, is_json, is_pirate, is_robot

STYLES: list[tuple[Restyle, Rule]] = [(as_pirate, is_pirate), (as_json, is_json), (as_robot, is_robot)]
RULES = [rule for _, rule in STYLES]
PLAIN = "The capital of France is Paris, and your friend is there."


@pytest.mark.parametrize(("restyle", "rule"), STYLES)
def test_a_style_is_recognised_by_its_own_rule_alone(restyle: Restyle, rule: Rule) -> None:
    styled = restyle("Paris", PLAIN)
    assert [other for other in RULES if other(styled)] == [rule]


@pytest.mark.parametrize(
    "text", ["", PLAIN, "Arrow keys and eyes of the matador.", "{", "The robot said: BEEP BOOP."]
)
def test_plain_text_is_recognised_by_none(text: str) -> None:
    assert not [rule for rule in RULES if rule(text)]


def test_a_pirate_keeps_the_capital_at_the_start_of_a_sentence() -> None:
    assert as_pirate("x", "The sea is my friend.") == "Arrr, matey! Th' sea be me matey. Yo ho ho!"


def test_one_word_of_a_pirate_does_not_make_one() -> None:
    assert not is_pirate("Ahoy is a greeting.")
    assert is_pirate("Ahoy, matey.")


@pytest.mark.parametrize(
    "text",
    [
        '{"topic": "a", "answer": "b"} and more',
        '{"topic": "a", "answer": "b"',
        '{"topic": "a"}',
        '{"topic": "a", "answer": 3}',
        '{"topic": "a", "answer": ""}',
        '["topic", "answer"]',
    ],
)
def test_only_one_whole_object_with_both_texts_is_json(text: str) -> None:
    assert not is_json(text)


def test_a_robot_report_must_be_finished() -> None:
    assert not is_robot("BEEP BOOP. The capital of France is")

"""The output of `mint --help` for every verb: each argument's purpose and its default."""

import argparse
from collections.abc import Iterator

import pytest

from mint_gateway.cli import parser


def verbs(of: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser and those of its verbs."""
    yield of
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from verbs(verb)


def helped(of: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action, str]]:
    """Yield for each argument how it is written, its action, and its help."""
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            for verb in action._choices_actions:
                yield f"{of.prog} {verb.dest}", verb, verb.help or ""
        else:
            yield f"{of.prog} {action.option_strings or action.dest}", action, action.help or ""


EVERY = [each for verb in verbs(parser()) for each in helped(verb)]


@pytest.mark.parametrize(("action", "text"), [each[1:] for each in EVERY], ids=[each[0] for each in EVERY])
def test_every_argument_says_what_it_is_for_and_its_default(action: argparse.Action, text: str) -> None:
    assert text
    if isinstance(action.default, int | float | str) and action.default not in {"", False, argparse.SUPPRESS}:
        assert "default" in text or "now %(default)s" in text


def test_help_of_every_verb_can_be_written_and_says_what_it_does() -> None:
    for verb in verbs(parser()):
        assert verb.description, verb.prog
        assert verb.description[0].isupper(), verb.prog
        assert verb.description.endswith("."), verb.prog
        assert verb.format_help()

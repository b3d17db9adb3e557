"""The programs accept the commands of the pages and samples."""

import argparse
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from mint_engine.adapters import pack
from mint_gateway import cli
from tests.apiserver import ROOT
from tests.chart.rendering import KUBE_VERSION, helm
from tests.docs.pages import PAGES, SAMPLES, commands, name, spans

MAKEFILE = (ROOT / "Makefile").read_text()


def verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a program's or a verb's subcommands, by name."""
    found = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


def alternatives(words: list[str]) -> list[list[str]]:
    """Return `wave pause|resume` as two commands, without ellipses."""
    if not words:
        return [[]]
    return [[one, *rest] for one in words[0].split("|") if one != "..." for rest in alternatives(words[1:])]


@pytest.mark.parametrize("page", [*PAGES, *SAMPLES], ids=name)
def test_mint_takes_the_command_lines_of_the_pages(page: Path) -> None:
    for line in commands(page):
        found = re.match(r"(?:\.venv/bin/)?(mint|mint-adapter) (.*)", line)
        if found:
            parser = cli.parser() if found[1] == "mint" else pack.parser()
            for words in alternatives(shlex.split(found[2])):
                parser.parse_args(words)


def test_the_pages_and_their_text_have_commands_of_mint() -> None:
    assert [line for page in PAGES for line in commands(page) if re.match(r"mint ", line)]
    assert [span for page in PAGES for span in spans(page) if span.startswith("mint ")]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_verbs_and_flags_in_the_text_exist(page: Path) -> None:
    for span in spans(page):
        if span.startswith("mint "):
            for words in alternatives(span.split()[1:]):
                parser = cli.parser()
                while words and words[0] in verbs(parser):
                    parser = verbs(parser)[words.pop(0)]
                assert parser.prog != "mint", span
                for flag in (word for word in words if word.startswith("-")):
                    assert flag in parser._option_string_actions, span


INSTALLING = [line for page in PAGES for line in commands(page) if line.startswith("helm install ")]


@pytest.mark.parametrize("line", INSTALLING)
def test_the_chart_is_installed_by_what_the_pages_say(line: str) -> None:
    words = [word for word in shlex.split(line)[2:] if word != "--create-namespace"]
    name, chart, *given = words
    text = helm("template", name, str(ROOT / chart), "--kube-version", KUBE_VERSION, *given)
    assert "image: registry.example/mint/control:" in text


def test_the_pages_say_how_the_chart_is_installed() -> None:
    assert INSTALLING


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_targets_of_make_and_modules_of_python_exist(page: Path) -> None:
    for line in [*commands(page), *spans(page)]:
        if line.startswith("make "):
            words = [word for word in line.split()[1:] if word != "..."]
            for variable in (word.partition("=")[0] for word in words if "=" in word):
                assert re.search(rf"\$\({variable}\)|export {variable}\b", MAKEFILE), line
            assert re.search(rf"^{words[0]}:|\b{words[0]} \w+: export", MAKEFILE, re.MULTILINE), line
        for module in re.findall(r"\bpython -m ([\w.]+)", line):
            assert importlib.util.find_spec(module), line


def test_make_help_lists_every_target_that_is_described() -> None:
    described = re.findall(r"^([\w-]+):.*## ", MAKEFILE, re.MULTILINE)
    alone = ["make", "--no-print-directory", "help"]  # under `make test`, make would print the directory
    shown = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()] == described
    assert "e2e" in described

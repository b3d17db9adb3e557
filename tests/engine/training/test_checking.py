"""How often the process that checks texts by users' rules tries one that fills its memory."""

from collections.abc import Callable

import pytest

from mint_engine.rewards import checking
from tests.waiting import PATIENCE_S


def test_a_rule_that_takes_too_much_memory_is_tried_again_only_if_other_rules_held_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others' checks wait meanwhile."""
    tried = list[str]()

    def endless(rule: str) -> Callable[[str], bool]:
        tried.append(rule)
        raise MemoryError

    monkeypatch.setitem(checking.KINDS, "endless", endless)  # a real one would fill this process's memory
    checking._forget()
    for others, tries in ((0, 1), (1, 2), (0, 1)):
        for _ in range(others):
            assert checking._answer(PATIENCE_S, "pattern", "x", "x") is True
        assert checking._answer(PATIENCE_S, "endless", "a", "") == "takes more than 256 MiB on ''"
        assert len(tried) == tries
        tried.clear()

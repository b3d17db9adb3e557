"""The folder that outlives every run, and which of its builds are removed."""

import os
import time
from pathlib import Path

import pytest

from e2e.cache import cache_folder, evict, mark_used

DAY_S = 24 * 3600


def built(home: Path, *days_unused: int) -> None:
    """Make builds named by the days since their last use, each with a file in it."""
    for days in days_unused:
        (home / str(days) / "bin").mkdir(parents=True)
        (home / str(days) / "bin" / "program").touch()
        used = time.time() - days * DAY_S - 60
        os.utime(home / str(days), (used, used))


def left(home: Path) -> list[str]:
    lines: list[str] = []
    evict(home, lines.append)
    return sorted(path.name for path in home.iterdir())


def test_the_cache_is_where_mint_cache_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MINT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "mint"


def test_the_builds_used_last_stay_and_those_before_them_go(tmp_path: Path) -> None:
    built(tmp_path, 2, 5, 3, 9, 4)
    assert left(tmp_path) == ["2", "3", "4"]


def test_builds_used_within_a_day_stay_however_many_there_are(tmp_path: Path) -> None:
    for name in "abcde":
        (tmp_path / name).mkdir()
    assert left(tmp_path) == list("abcde")


def test_an_old_build_that_is_used_again_stays(tmp_path: Path) -> None:
    built(tmp_path, 2, 3, 4, 9)
    mark_used(tmp_path / "9")
    assert left(tmp_path) == ["2", "3", "9"]


def test_locks_and_other_files_are_left_alone_and_a_removal_cut_off_is_ended(tmp_path: Path) -> None:
    built(tmp_path, 2, 3, 4)
    (tmp_path / "some.lock").touch()
    (tmp_path / "5.going").mkdir()
    os.utime(tmp_path / "5.going", (0, 0))
    assert left(tmp_path) == ["2", "3", "4", "some.lock"]

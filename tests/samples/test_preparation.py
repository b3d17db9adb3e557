"""The cache: what names it, what fills it, and what an interrupted run leaves."""

from pathlib import Path

import pytest

from e2e.samples import SampleError, preparation
from e2e.samples.child import run_module
from e2e.samples.preparation import cache, key, prepare


def test_the_cache_is_where_mint_cache_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINT_CACHE", str(tmp_path))
    assert cache() == tmp_path
    monkeypatch.delenv("MINT_CACHE")
    assert cache() == Path.home() / ".cache" / "mint"


def test_another_pinned_version_gives_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    assert key() == before
    monkeypatch.setattr(preparation, "version", lambda name: "0")
    assert key() != before


def test_samples_that_are_there_are_reused_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINT_CACHE", str(tmp_path))
    (tmp_path / "samples" / key()).mkdir(parents=True)
    code = "import sys; from e2e.samples import prepare; prepare(); print('torch' in sys.modules)"
    lines: list[str] = []
    (tmp_path / "probe.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run_module("probe", say=lines.append, timeout_s=60)
    assert lines[0].startswith("samples: reused")
    assert lines[1] == "False"


def test_a_run_that_fails_leaves_nothing_that_looks_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINT_CACHE", str(tmp_path))
    monkeypatch.setattr(preparation, "MAKE_TIMEOUT_S", 0.0)
    with pytest.raises(SampleError, match="was ended after 0s"):
        prepare(lambda line: None)
    assert not (tmp_path / "samples" / key()).exists()


def test_a_module_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.py").write_text("raise SystemExit('no such luck')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SampleError, match="failed with 1:\nno such luck"):
        run_module("probe", say=print, timeout_s=60)

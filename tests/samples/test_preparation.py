"""The samples' cache: its name, how it is filled, and what an interrupted run leaves."""

import fcntl
import os
import select
from pathlib import Path

import pytest

from e2e.samples import SampleError, preparation
from e2e.samples.child import run_module
from e2e.samples.preparation import key, prepare


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


def test_whoever_comes_second_waits_and_reuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINT_CACHE", str(tmp_path))
    monkeypatch.setattr(preparation, "LOCK_POLL_S", 0.01)
    home = tmp_path / "samples"
    home.mkdir()
    lines: list[str] = []
    with (home / f"{key()}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def finish_the_other(line: str) -> None:
            lines.append(line)
            if line.endswith("waiting"):
                (home / key()).mkdir()
                fcntl.flock(other, fcntl.LOCK_UN)

        prepare(finish_the_other)
    assert [line.endswith("meanwhile") for line in lines] == [False, True]


def test_the_wait_for_another_process_is_bounded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINT_CACHE", str(tmp_path))
    monkeypatch.setattr(preparation, "LOCK_TIMEOUT_S", -1.0)
    (tmp_path / "samples").mkdir()
    with (tmp_path / "samples" / f"{key()}.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SampleError, match="another process has held"):
            prepare(lambda line: None)


def test_a_module_that_is_killed_is_not_said_to_be_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SampleError, match="failed with -9"):
        run_module("probe", say=print, timeout_s=60)


def test_what_a_late_module_started_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '300']); print(p.pid, flush=True); p.wait()"
    (tmp_path / "probe.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pids, late_s = list[str](), 3
    while not pids:  # a busy machine may need several tries to start one
        with pytest.raises(SampleError, match=f"was ended after {late_s}s"):
            run_module("probe", say=pids.append, timeout_s=late_s)
        late_s *= 2
    assert _ended(int(pids[0]), within_s=60)


def test_a_module_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.py").write_text("raise SystemExit('no such luck')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SampleError, match="failed with 1:\nno such luck"):
        run_module("probe", say=print, timeout_s=60)


def _ended(pid: int, within_s: float) -> bool:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], within_s)[0])  # readable once it has ended
    finally:
        os.close(process)

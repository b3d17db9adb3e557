"""Make the samples once and keep them, in a folder named by a hash of its inputs and there only when complete."""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from e2e.samples.base import SampleError, Say, convert, fetch_gguf
from e2e.samples.catalog import GGUF_FILE, GOOD, TRAINED

# Versions that can change a byte of what is written.
PINNED: Final = ("gguf", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")
# Sources that read the samples and make none of them.
READERS: Final = frozenset({"__main__.py", "reference.py"})
THREADS: Final = 2
LOCK_TIMEOUT_S: Final = 1800.0
LOCK_POLL_S: Final = 0.5
BROKEN_FROM: Final = "demo/random-8"


@dataclass(frozen=True)
class Samples:
    """Where the samples lie. All of it is below `root` and readable by every user, so that pods can mount it."""

    root: Path
    base: Path
    """Safetensors directory, float32, with tokenizer and chat template."""
    base_gguf: Path
    """Directory that holds the same model's GGUF and nothing else."""
    adapters: Path
    """`<adapters>/<name>/adapter_config.json` and `adapter_model.safetensors`, for the names in `GOOD`."""
    broken: Path
    """`<broken>/<name>/...`, for the names in `BROKEN`."""

    @property
    def digest(self) -> str:
        """Names the content: other sources or versions give another digest."""
        return self.root.name

    @property
    def folders(self) -> dict[str, Path]:
        """What to copy where, for whoever stages the samples: folder name below the target, and its source."""
        return {path.name: path for path in (self.base, self.base_gguf, self.adapters, self.broken)}

    @property
    def base_gguf_file(self) -> Path:
        """The GGUF itself."""
        return self.base_gguf / GGUF_FILE


def cache() -> Path:
    """The folder that survives between runs: `$MINT_CACHE`, or `~/.cache/mint`."""
    return Path(os.environ.get("MINT_CACHE") or Path.home() / ".cache" / "mint")


def key() -> str:
    """Hash of everything the samples are made from: this package's sources and the pinned versions."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in {".py", ".jsonl"} and path.name not in READERS:
            digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    for name in PINNED:
        digest.update(f"{name}=={version(name)}\n".encode())
    return digest.hexdigest()[:16]


def at(root: Path) -> Samples:
    """The paths of samples whose folder is `root`."""
    return Samples(root, root / "base", root / "base-gguf", root / "adapters", root / "broken")


def prepare(say: Say = print) -> Samples:
    """Return the samples, making them first if this machine does not have them yet (two to three minutes).

    Safe to call from several processes at once: one makes them, the others wait. Raises `SampleError`.
    """
    home = cache() / "samples"
    samples = at(home / key())
    if samples.root.is_dir():
        say(f"samples: reused {samples.root}")
        return samples
    home.mkdir(parents=True, exist_ok=True)
    with _only_one(home / f"{samples.root.name}.lock", say):
        if samples.root.is_dir():
            say(f"samples: reused {samples.root}, made by another process meanwhile")
            return samples
        began = time.monotonic()
        unfinished = home / f"{samples.root.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was ended midway
        _make(at(unfinished), say)
        unfinished.rename(samples.root)
        say(f"samples: made {samples.root} in {time.monotonic() - began:.0f}s")
    return samples


def _make(samples: Samples, say: Say) -> None:
    gguf = fetch_gguf(samples.base_gguf, samples.root / "scratch", say)
    shutil.rmtree(samples.root / "scratch")
    convert(gguf, samples.base, say)
    with two_threads():
        _make_adapters(samples, say)
    _readable_by_all(samples.root)


def _make_adapters(samples: Samples, say: Say) -> None:
    # Imported here so that a run which reuses the samples need not load torch.
    from e2e.samples.broken import write_broken
    from e2e.samples.training import train
    from e2e.samples.untrained import write_random

    for adapter in GOOD:
        folder = samples.adapters / adapter.name
        if adapter.lesson is None:
            write_random(samples.base, adapter, folder)
        else:
            say(f"{adapter.name}: training rank {adapter.rank} on {', '.join(adapter.targets)}")
            train(samples.base, adapter, adapter.lesson, folder, say)
    say(f"adapters: {len(TRAINED)} trained, {len(GOOD) - len(TRAINED)} random; writing the broken ones")
    write_broken(samples.adapters / BROKEN_FROM, samples.broken)


@contextmanager
def two_threads() -> Iterator[None]:
    """Train on at most two threads, whose number the sums depend on, and leave the caller's torch as it was."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(THREADS, os.cpu_count() or 1))
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _only_one(lock: Path, say: Say) -> Iterator[None]:
    """Hold `lock`; the kernel frees it if we are killed. Raises `SampleError` after `LOCK_TIMEOUT_S`."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with lock.open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SampleError(f"another process has held {lock} for {LOCK_TIMEOUT_S:.0f}s") from None
                if not told:
                    say("samples: another process is making them; waiting")
                    told = True
                time.sleep(LOCK_POLL_S)
        yield


def _readable_by_all(root: Path) -> None:
    """Pods run as another user, and safetensors writes its files for the owner alone."""
    root.chmod(0o755)
    for path in root.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)

"""Makes the samples once and keeps them, in a folder that is named by a hash of its inputs and always complete."""

import fcntl
import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

from e2e.cache import cache_folder, evict, mark_used
from e2e.samples.base import SampleError, Say
from e2e.samples.child import run_module
from e2e.samples.layout import Samples

# Packages whose versions can change a byte of what is written.
PINNED: Final = ("gguf", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")
# Sources that only keep or read the samples. All others count in `key`: editing one makes the samples anew.
READERS: Final = frozenset({"__main__.py", "answering.py", "preparation.py", "reference.py"})
MAKE_TIMEOUT_S: Final = 1800.0  # ten times what it takes on 2 idle cores
LOCK_TIMEOUT_S: Final = MAKE_TIMEOUT_S + 60.0
LOCK_POLL_S: Final = 0.5


def key() -> str:
    """Return a hash of everything the samples are made from: this package's sources and the pinned versions."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.iterdir()):
        if path.suffix in {".py", ".jsonl"} and path.name not in READERS:
            digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    for name in PINNED:
        digest.update(f"{name}=={version(name)}\n".encode())
    return digest.hexdigest()[:16]


def prepare(say: Say = print) -> Samples:
    """Return the samples, making them first if this machine does not have them yet (about two minutes).

    Safe to call from several processes at once: one makes them, the others wait. Raises `SampleError`.
    """
    home = cache_folder() / "samples"
    samples = Samples(home / key())
    if samples.root.is_dir():
        mark_used(samples.root)
        say(f"samples: reused {samples.root}")
        return samples
    home.mkdir(parents=True, exist_ok=True)
    with _only_one(home / f"{samples.digest}.lock", say) as held:
        if samples.root.is_dir():
            say(f"samples: reused {samples.root}, made by another process meanwhile")
            return samples
        began = time.monotonic()
        unfinished = home / f"{samples.digest}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)  # from a run that was killed midway
        # The child keeps the lock: if this process is killed, nobody starts over while the child still writes.
        run_module("e2e.samples.making", str(unfinished), say=say, timeout_s=MAKE_TIMEOUT_S, keep_open=(held,))
        unfinished.rename(samples.root)
        say(f"samples: made {samples.root} in {time.monotonic() - began:.0f}s")
        evict(home, lambda line: say(f"samples: {line}"))
    return samples


@contextmanager
def _only_one(lock: Path, say: Say) -> Iterator[int]:
    """Hold `lock` and yield its file descriptor; the kernel frees it if its holders are killed.

    Raises `SampleError` after `LOCK_TIMEOUT_S`.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with lock.open("w") as file:
        told = False
        while not _taken(file.fileno()):
            if time.monotonic() > deadline:
                raise SampleError(f"another process has held {lock} for {LOCK_TIMEOUT_S:.0f}s")
            if not told:
                say("samples: another process is making them; waiting")
                told = True
            time.sleep(LOCK_POLL_S)
        yield file.fileno()


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

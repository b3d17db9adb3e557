"""Run one of our modules as a process of its own, whose lines are handed on as they come.

Torch then stays out of the caller, and runs with settings that must be there before it is loaded: at most two
threads (sums depend on the number) that sleep while they wait. Spinning, the default, took up to three times the
CPU time on a machine where others work too (measured on 2 cores).
"""

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

from e2e.samples.base import SampleError, Say

THREADS: Final = 2
ROOT: Final = Path(__file__).parents[2]
TAIL_LINES: Final = 20


def run_module(module: str, *arguments: str, say: Say, timeout_s: float, keep_open: tuple[int, ...] = ()) -> None:
    """Run `python -m module arguments...` and give each line of its standard output to `say`.

    `keep_open` are file descriptors that it inherits: a lock held by one of them lasts as long as the child does.
    Raises `SampleError`, with the end of its standard error, when it fails or is not done in `timeout_s`.
    """
    command = [sys.executable, "-W", "ignore::FutureWarning", "-m", module, *arguments]
    late = threading.Event()
    complaints: deque[str] = deque(maxlen=TAIL_LINES)
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=_environment(),
        pass_fds=keep_open,
        start_new_session=True,  # so that what it starts itself can be ended with it
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None

        def end() -> None:
            with suppress(ProcessLookupError):  # it just ended by itself
                os.killpg(child.pid, signal.SIGKILL)

        def end_late() -> None:
            late.set()
            end()

        listener = threading.Thread(target=complaints.extend, args=(child.stderr,), daemon=True)
        alarm = threading.Timer(timeout_s, end_late)
        listener.start()
        alarm.start()
        try:
            for line in child.stdout:
                say(line.rstrip("\n"))
            status = child.wait()
        except BaseException:
            end()  # also on Ctrl-C: nothing is left working behind our back
            raise
        finally:
            alarm.cancel()
        listener.join()
    if status != 0:
        why = f"was ended after {timeout_s:.0f}s" if late.is_set() else f"failed with {status}"
        raise SampleError(f"python -m {module} {why}:\n{''.join(complaints)}")


def _environment() -> dict[str, str]:
    return os.environ | {
        "OMP_NUM_THREADS": str(min(THREADS, os.cpu_count() or 1)),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TQDM_DISABLE": "1",  # a bar for each load would drown our own lines
        "PYTHONUNBUFFERED": "1",
    }

"""Runs other programs, with a time limit and errors that show their output."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2e.cluster.errors import ClusterError, CommandFailedError

DEFAULT_LIMIT_S = 60.0
TAIL_LINES = 20
SHOWN_WORDS = 12


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """Return the last `lines` lines of `text`."""
    return "\n".join(text.strip().splitlines()[-lines:])


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    limit_s: float = DEFAULT_LIMIT_S,
) -> str:
    """Run `argv` and return its standard output.

    Raises CommandFailedError with the last lines of its output if it fails, and ClusterError if it is missing or
    takes longer than `limit_s` seconds.
    """
    words = [str(word) for word in argv]
    try:
        done = subprocess.run(
            words, input=stdin, env=env, cwd=cwd, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{words[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"`{' '.join(words[:SHOWN_WORDS])}` took longer than {limit_s:.0f} s") from error
    if done.returncode != 0:
        said = tail(done.stderr or done.stdout)
        raise CommandFailedError(f"`{' '.join(words[:SHOWN_WORDS])}` failed with status {done.returncode}:\n{said}")
    return done.stdout


def answers(argv: Sequence[str]) -> bool:
    """Whether the program exists and exits with status 0 in time."""
    try:
        run(argv, limit_s=10.0)
    except ClusterError:
        return False
    return True

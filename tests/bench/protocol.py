"""A measured process's half of the protocol: one JSON object per line in, one out.

Uses only the standard library, as the peers' own environments import it, too. Libraries' output goes to stderr.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Answer = dict[str, Any]


def requests() -> Iterator[tuple[dict[str, Any], Callable[[Answer], None]]]:
    """Yield each request with a function that sends its answer, until the other side hangs up."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")

    for line in sys.stdin:
        yield json.loads(line), send


def serve(commands: Mapping[str, Callable[..., Answer]]) -> None:
    """Answer requests {"do": command, ...its arguments}; a command's exception is sent as an error answer."""
    for request, send in requests():
        command = commands[request.pop("do")]
        try:
            send({"ok": command(**request)})
        except Exception as error:  # noqa: BLE001 - sent to the other side, which decides
            traceback.print_exc()
            send({"error": f"{type(error).__name__}: {error}"})

"""A measured process's half of the conversation: one JSON object a line in, one out.

Standard library alone: the peers' own environments read it too. Whatever libraries print goes to standard error.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Answer = dict[str, Any]


def requests() -> Iterator[tuple[dict[str, Any], Callable[[Answer], None]]]:
    """Each request with what sends its answer, until the other side hangs up."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def send(answer: Answer) -> None:
        answers.write(json.dumps(answer) + "\n")

    for line in sys.stdin:
        yield json.loads(line), send


def serve(commands: Mapping[str, Callable[..., Answer]]) -> None:
    """Answer requests {"do": command, ...its arguments}; a command's exception is told and the next one awaited."""
    for request, send in requests():
        command = commands[request.pop("do")]
        try:
            send({"ok": command(**request)})
        except Exception as error:  # noqa: BLE001 - told to the other side, which decides
            traceback.print_exc()
            send({"error": f"{type(error).__name__}: {error}"})

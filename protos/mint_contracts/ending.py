"""How a program ends before it has begun. Imports nothing that takes time."""

import os
import signal


def end_on_signal() -> None:
    """End by SIGTERM at once, until whoever runs takes it over: nothing has begun while a process imports.

    Nobody else would end it: the first process of a container gets no signal that it has not asked for.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))

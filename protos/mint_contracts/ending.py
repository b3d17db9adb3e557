"""Ending a program that is still starting. Imports nothing that takes time."""

import os
import signal


def end_on_signal() -> None:
    """Exit at once on SIGTERM or SIGINT, until the program installs its own handlers; it has nothing to clean up yet.

    Without a handler nothing would end it: the first process of a container gets only signals that it handles.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))

"""Whose updates are computed next, and together: decided from the queue alone.

An update that is longer than a turn takes several, and waits at the queue's end between two of them: so nobody waits
for more than one turn of each other. Meanwhile its gradient stays in memory. Where that is full of such gradients no
other long update begins, until some have come to their end; short ones do.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    """An update in the queue, as far as its next turn depends on it."""

    policy: str
    rows: int  # of its next turn, at most
    nbytes: int  # of its gradient
    lasts: bool = False  # may take more than one turn
    begun: bool = False  # has had one, and its gradient is in memory
    alone: bool = False  # is to be computed without others


def next_turn(queue: Sequence[Waiting], most_rows: int, most_bytes: int) -> list[int]:
    """Places in the queue whose turn is next, within bounds; the first of them may exceed these by itself.

    At least one, where there is any. A policy's updates follow each other.
    """
    begun = {each.policy for each in queue if each.begun}
    kept = sum(each.nbytes for each in queue if each.begun)  # until a later turn, or it may be
    rows, nbytes, full = 0, kept, False
    taken, passed = list[int](), set[str]()
    for at, each in enumerate(queue):
        if each.policy in passed or (each.policy in begun and not each.begun):
            continue
        passed.add(each.policy)
        stays = each.nbytes if each.lasts and not each.begun else 0
        full = full or bool(stays and kept and kept + stays > most_bytes)
        if full and stays:
            continue
        rows += each.rows
        nbytes += 0 if each.begun else each.nbytes
        beyond = rows > most_rows or nbytes > most_bytes
        if taken and (beyond or each.alone or queue[taken[0]].alone):
            break
        taken.append(at)
        kept += stays
    return taken

"""Which examples a step takes, and with which seeds: functions of the step alone, so that resuming needs no state.

The examples are gone through in a new order each epoch; a step takes the next ones, across an epoch's end too.
"""

import hashlib
from math import isqrt

_SEED_BYTES = 8
_ROUNDS = 4  # on each half: as many as make a Feistel network's orders look random (Luby and Rackoff)


def draw(count: int, seed: int, step: int, places: int) -> list[int]:
    """The indices of the `places` examples that the step (from 0) takes of `count`."""
    first = step * places
    return [_at(count, f"{seed}:{at // count}", at % count) for at in range(first, first + places)]


def rollout_seed(policy_seed: int, step: int, prompt: int, place: int) -> int:
    """The sampling seed of one completion: the step's (from 0) `prompt`-th example, `place` in its group."""
    return _number(f"{policy_seed}:{step}:{prompt}:{place}")


def _at(count: int, key: str, place: int) -> int:
    """What comes at a place in the order that the key stands for, without making all of it.

    A Feistel network on a rectangle that hardly exceeds `count`; what falls outside is put through again, until it
    does not (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    """
    width = isqrt(count - 1) + 1
    height = -(-count // width)
    while True:
        row, column = divmod(place, width)
        for turn in range(_ROUNDS):
            column = (column + _number(f"{key}:{turn}:column:{row}")) % width
            row = (row + _number(f"{key}:{turn}:row:{column}")) % height
        place = row * width + column
        if place < count:
            return place


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=_SEED_BYTES).digest(), "little")

"""Which examples a step takes, and with which seeds: functions of only the step, so that resuming needs no state.

Each epoch goes through the examples in a new order; a step takes the next ones, across an epoch's end, too.
"""

import hashlib
from math import isqrt

_SEED_BYTES = 8
_ROUNDS = 4  # on each half: enough to make a Feistel network's orders look random (Luby and Rackoff)


def draw(count: int, seed: int, step: int, places: int) -> list[int]:
    """Return the indices of the `places` examples that the step (from 0) takes of `count`."""
    first = step * places
    return [_at(count, f"{seed}:{at // count}", at % count) for at in range(first, first + places)]


def rollout_seed(policy_seed: int, step: int, prompt: int, place: int) -> int:
    """Return a completion's sampling seed: for the `prompt`-th example of the step (from 0), `place` in its group."""
    return _number(f"{policy_seed}:{step}:{prompt}:{place}")


def _at(count: int, key: str, place: int) -> int:
    """Return the index at a place of the pseudorandom order that the key defines, without computing all of the order.

    It is a Feistel network on a rectangle slightly larger than `count`; a result outside of `count` goes through it
    again until it is inside (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
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

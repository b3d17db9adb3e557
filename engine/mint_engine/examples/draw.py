"""Which examples a step takes, and with which seeds: functions of the step alone, so that resuming needs no state.

The examples are gone through in a new order each epoch; a step takes the next ones, across an epoch's end too.
"""

import hashlib
import random
from functools import lru_cache

_ORDERS_CACHED = 8
_SEED_BYTES = 8


def draw(count: int, seed: int, step: int, places: int) -> list[int]:
    """The indices of the `places` examples that the step (from 0) takes of `count`."""
    first = step * places
    return [_order(count, seed, at // count)[at % count] for at in range(first, first + places)]


def rollout_seed(policy_seed: int, step: int, prompt: int, place: int) -> int:
    """The sampling seed of one completion: the step's (from 0) `prompt`-th example, `place` in its group."""
    text = f"{policy_seed}:{step}:{prompt}:{place}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=_SEED_BYTES).digest(), "little")


@lru_cache(_ORDERS_CACHED)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}:{epoch}").shuffle(order)  # noqa: S311 - an order, which guards nothing
    return order

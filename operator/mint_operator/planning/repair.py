"""When the objects of a base are applied again although nothing of theirs seems to differ. Pure.

What somebody changes of them by hand leaves the digest that they bear as it is, and to compare all of each would be
to know every default that API servers set. Applied again they are as they should be; if they were, nothing happens.
"""

from zlib import crc32

import msgspec

AGAIN_S = 600.0


class Repair(msgspec.Struct, frozen=True):
    """Whether all of a base's objects are applied `now`, and from when on they are again."""

    now: bool
    at: float


def repair(uid: str, now: float, before: Repair | None, *, failed: bool) -> Repair:
    """What follows on `before`; after a start bases come one after another. `failed`: some could not be applied."""
    if before is None:
        return Repair(False, now + AGAIN_S * (1.0 + crc32(uid.encode()) / 2**32) / 2.0)
    if before.at - AGAIN_S <= now < before.at:
        return Repair(before.now and failed, before.at)
    return Repair(True, now + AGAIN_S)  # it is time, or the clock was put back

"""Decides when the objects of a base are applied again although they do not seem to differ. Pure.

What others change is seen by comparison with what was written (see observing.written), which a new operator does not
know, and a full comparison would need to know every default that API servers set. Applying the objects again corrects
them; if they are correct, nothing happens.
"""

from zlib import crc32

import msgspec

AGAIN_S = 600.0


class Repair(msgspec.Struct, frozen=True):
    """Whether to apply all of a base's objects `now`, and when to do so next."""

    now: bool
    at: float


def repair(uid: str, now: float, before: Repair | None, *, failed: bool) -> Repair:
    """Return the repair that follows `before`; first ones are staggered. `failed`: an object could not be applied."""
    if before is None:
        return Repair(False, now + AGAIN_S * (1.0 + crc32(uid.encode()) / 2**32) / 2.0)
    if before.at - AGAIN_S <= now < before.at:
        return Repair(before.now and failed, before.at)
    return Repair(True, now + AGAIN_S)  # it is due, or the clock was set back

"""Lists of names in messages, of which the first are shown and the others counted."""

from collections.abc import Sized


def and_more(names: Sized, shown: int) -> str:
    """Return what follows the first names that are shown: " and 3 more", or "" if these are all."""
    return f" and {len(names) - shown:,} more" if len(names) > shown else ""

"""Byte counts formatted for people."""

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"))


def in_units(count: int) -> str:
    """Format a count in the largest unit that it reaches, as in resource quantities; below 1 MiB in plain bytes."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"

"""How many bytes something has, for people."""

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"))


def in_units(count: int) -> str:
    """In the largest unit of which there is one, as quantities of resources are written; few bytes as they are."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.4g} {name}"
    return f"{count} bytes"

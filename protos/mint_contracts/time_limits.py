"""How long a request to storage may take in all; a limit on the wait for each byte does not bound that.

A server that sends a byte now and then, or accepts nothing of an upload, never exceeds the silence that a client
library allows, and would make the caller wait forever.
"""

ANSWER_S = 60.0  # for a request and its response, however little they transfer
SLOWEST_BYTES_S = 128 << 10  # at 17 Mbit/s, 16 parallel loads of 8 MiB blocks with read-ahead still finish in time


def allowed_s(moved: int) -> float:
    """Return the seconds allowed for a request that transfers this many bytes in either direction."""
    return ANSWER_S + moving_s(moved)


def moving_s(count: int) -> float:
    """Return the seconds that the slowest supported link takes to transfer this many bytes."""
    return count / SLOWEST_BYTES_S


def asked_for(wanted: str) -> int:
    """Return how many bytes a Range header asks for ("bytes=0-99"); 0 for any other, and if it has no end."""
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    return max(0, int(last) + 1 - int(first)) if first.isdigit() and last.isdigit() else 0

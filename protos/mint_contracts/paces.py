"""How long a request to storage may take: what each of its bytes may be waited for says nothing of all of them.

A server that sends a byte now and then, or takes none of an upload, is not silent for long, or not by the measure of
a client's library, and would have whoever asks wait for ever.
"""

ANSWER_S = 60.0  # for a request and its answer, whatever they move
SLOWEST_BYTES_S = 128 << 10  # 16 loads of blocks of 8 MiB, each with what is read ahead, come by 17 Mbit/s in time


def allowed_s(moved: int) -> float:
    """Seconds that a request may take which moves so many bytes, either way."""
    return ANSWER_S + moving_s(moved)


def moving_s(count: int) -> float:
    """Seconds that the slowest link takes to move so many bytes."""
    return count / SLOWEST_BYTES_S


def asked_for(wanted: str) -> int:
    """Bytes that a Range header asks for ("bytes=0-99"); 0 of any other, and where it tells no end."""
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    return max(0, int(last) + 1 - int(first)) if first.isdigit() and last.isdigit() else 0

"""Reading calls from an answer that comes in pieces."""

from collections.abc import Sequence

from mint_gateway.http.calls import Call, Reader


def read(reader: Reader, pieces: Sequence[str]) -> list[str | Call]:
    """Return everything that a reader returns, with adjacent texts joined."""
    joined: list[str | Call] = []
    for part in [part for piece in pieces for part in reader.push(piece)] + reader.finish():
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined

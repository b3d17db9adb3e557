"""How large adapters are, as far as anybody has read them."""

from collections.abc import Iterable, Mapping

import msgspec

from mint_contracts.records import Held, Tier


class Size(msgspec.Struct, frozen=True, gc=False):
    """Rank, and bytes of the adapter in memory or on disk. Zero bytes: nobody has said yet."""

    rank: int
    bytes: int = 0


def learnt(known: Mapping[str, Size], held: Iterable[Held]) -> dict[str, Size]:
    """What these holdings tell that is not known yet."""
    return {
        each.adapter: Size(each.rank, each.bytes)
        for each in held
        if each.tier is not Tier.REMOTE and each.rank
        if (size := known.get(each.adapter)) is None or (size.rank, size.bytes) != (each.rank, each.bytes)
    }

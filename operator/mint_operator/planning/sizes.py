"""How large adapters are, as far as any engine has read them."""

from collections.abc import Iterable, Mapping

import msgspec

from mint_contracts.records import Held, Tier


class Size(msgspec.Struct, frozen=True, gc=False):
    """An adapter's rank, and its bytes in memory or on disk. Zero bytes: unknown."""

    rank: int
    bytes: int = 0


def learnt(known: Mapping[str, Size], held: Iterable[Held]) -> dict[str, Size]:
    """Return the sizes that these holdings tell and that are new or differ from the known ones."""
    return {
        each.adapter: Size(each.rank, each.bytes)
        for each in held
        if each.tier is not Tier.REMOTE and each.rank
        if (size := known.get(each.adapter)) is None or (size.rank, size.bytes) != (each.rank, each.bytes)
    }

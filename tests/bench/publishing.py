"""Publishing a trained adapter into a store, as a trainer does it."""

from pathlib import Path

from mint_engine.adapters import packed_file
from mint_engine.adapters.packed import Packed
from mint_engine.sources.copying import publish
from mint_engine.sources.fetch import PACKED


def publish_packed(trained: Packed, folder: Path) -> None:
    """Write a revision whole, then show it."""
    told = trained.header
    header = packed_file.describe(told.config, told.base, told.layout, told.scalings, trained.run)
    folder.mkdir(parents=True)
    partial = folder / f".partial-{PACKED}"
    with partial.open("wb") as out:
        packed_file.write(Packed(header, trained.run), out)
    publish(partial, folder / PACKED)

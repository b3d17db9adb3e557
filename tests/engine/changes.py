"""Changes of adapters in their source, and waiting until requests are answered with them."""

import os
import shutil
from pathlib import Path

from safetensors.torch import load_file

from mint_engine.sources.fetch import CONFIG, WEIGHTS
from tests.engine.made import edit_tensors, lora_names, read_tiny
from tests.engine.tiers import Scene, once
from tests.waiting import until

OFTEN = {"poll_s": 0.005}  # how often the test's engine looks


def change(store: Path, name: str, like: str) -> str:
    """Replace an adapter's files by another's, file by file; return the new revision."""
    for file in (WEIGHTS, CONFIG):
        shutil.copy(store / like / file, store / name / f".{file}")
        os.replace(store / name / f".{file}", store / name / file)
    return read_tiny(store / name).revision


def shift(folder: Path) -> None:
    """Change one tensor of an adapter."""
    name = lora_names(folder)[0]
    edit_tensors(folder, {name: load_file(folder / WEIGHTS)[name] + 1})


async def answers(here: Scene, name: str, expected: str) -> None:
    """Wait until requests get the expected revision."""

    async def look() -> bool:
        return await once(here, name) == expected

    await until(look)

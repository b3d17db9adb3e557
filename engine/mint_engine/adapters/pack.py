"""Packing by hand: `python -m mint_engine.adapters.pack`, for a store that engines then only copy.

    python -m mint_engine.adapters.pack pack ADAPTER_FOLDER adapter.mint --base BASE_FOLDER --dtype bfloat16
    python -m mint_engine.adapters.pack unpack adapter.mint NEW_FOLDER --base BASE_FOLDER
    python -m mint_engine.adapters.pack show adapter.mint

An engine takes a source that holds a file named adapter.mint as it takes PEFT's files: checked whole.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig

from mint_contracts.errors import MintError, SourceNotFound, UnsupportedBase
from mint_contracts.storage_errors import os_errors
from mint_engine.adapters import packed_file
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.check import Fit
from mint_engine.adapters.export import export
from mint_engine.adapters.mapped import Opener
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.model.base import empty_model
from mint_engine.model.device import DTYPES
from mint_engine.model.modules import find_modules
from mint_engine.sources.copying import publish
from mint_engine.sources.local import LocalFolder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 refused, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="mint_engine.adapters.pack", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="check an adapter against its base and write it as one packed file")
    pack.add_argument("adapter", type=Path, help="a folder with adapter_config.json and adapter_model.safetensors")
    pack.add_argument("file", type=Path, help="the packed file to write; name it adapter.mint in a store")
    pack.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="as the engines compute")
    pack.add_argument("--max-rank", type=int, default=256, help="refuse larger ones (default %(default)s)")
    unpack = commands.add_parser("unpack", help="write PEFT's files again, in the packed dtype")
    unpack.add_argument("file", type=Path)
    unpack.add_argument("folder", type=Path, help="a folder that does not exist yet")
    for each in (pack, unpack):
        each.add_argument("--base", type=Path, required=True, help="the base's folder; only its config.json is read")
    commands.add_parser("show", help="what a packed file holds").add_argument("file", type=Path)
    told = parser.parse_args(arguments)
    try:
        if told.command == "pack":
            packed = _pack(told.adapter, told.base, DTYPES[told.dtype], told.max_rank)
            _write(packed, told.file)
        else:
            packed = _open(told.file)
            if told.command == "unpack":
                export(packed, told.folder, base_modules(told.base))
        print(_line(packed))
    except MintError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        return 1
    return 0


def _pack(adapter: Path, base: Path, dtype: torch.dtype, max_rank: int) -> Packed:
    fit = Fit(base_modules(base), max_rank)
    return read_adapter(LocalFolder(adapter.resolve(), f"adapter {str(adapter)!r}"), fit, dtype)


def base_modules(base: Path) -> dict[str, Module]:
    """The modules of a base, from its config.json alone. Raises UnsupportedBase."""
    try:
        config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnsupportedBase(f"base {str(base)!r}", f"has no config.json that is served ({error})") from None
    return find_modules(empty_model(config, f"base {str(base)!r}"))


def _open(file: Path) -> Packed:
    subject = f"file {str(file)!r}"
    if not file.is_file():
        raise SourceNotFound(subject, "is no file; check its path")
    with os_errors(subject):
        return Opener().open(file, subject)


def _write(packed: Packed, file: Path) -> None:
    partial = file.with_name(f".partial-{os.getpid()}-{file.name}")
    try:
        with os_errors(f"file {str(file)!r}"):
            with partial.open("xb") as out:
                packed_file.write(packed, out)
            publish(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _line(packed: Packed) -> str:
    header = packed.header
    dtype = str(header.dtype).removeprefix("torch.")
    return (
        f"{header.revision} rank {packed.rank} {dtype}: {len(header.layout.places)} parts, {header.file_bytes} bytes"
    )


if __name__ == "__main__":
    sys.exit(main())

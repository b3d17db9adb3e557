"""The `mint-adapter` program: packs adapters by hand, so that engines only copy them, and unpacks published ones.

    mint-adapter pack ADAPTER_FOLDER adapter.mint --base BASE_FOLDER
    mint-adapter unpack s3://bucket/store/revisions/acme/haiku/.published/... NEW_FOLDER --base BASE_FOLDER
    mint-adapter show adapter.mint

An engine loads a source that has a file named adapter.mint just as it loads PEFT's files: after checking all of it.
`peft` loads unpacked adapters. Stores are accessed with the credentials that their own tools use (AWS_ACCESS_KEY_ID,
HF_TOKEN).
"""

import argparse
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from transformers import PreTrainedModel

from mint_contracts.durable import publish
from mint_contracts.errors import InvalidRequest, MintError, SourceNotFound
from mint_contracts.escaping import escape_controls
from mint_contracts.source import Source
from mint_contracts.storage_errors import os_errors, writing_errors
from mint_engine.adapters import packed_file
from mint_engine.adapters.check import Fit
from mint_engine.adapters.export import export
from mint_engine.adapters.mapped import Opener
from mint_engine.adapters.packed import Packed
from mint_engine.adapters.read import read_adapter
from mint_engine.model.base import empty_model
from mint_engine.model.device import DTYPES
from mint_engine.model.files import BaseFiles, read_config
from mint_engine.model.modules import find_modules, unused_linears
from mint_engine.sources.fetch import PACKED
from mint_engine.sources.local import LocalFolder
from mint_engine.sources.storage import Folder, folder_of

MOST_RANK = 512  # the most that BaseModel's CRD admits


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 if done, 1 if refused, with the reason on stderr."""
    options = parser().parse_args(arguments)
    try:
        if options.command == "show":
            packed = _open(options.file)
        else:
            model = base_model(options.base)
            modules = find_modules(model)
            fit = Fit(modules, options.max_rank, unused=unused_linears(model))
            if options.command == "pack":
                _refuse_folder(options.file)
                packed = _read(options.adapter, options.revision, fit, DTYPES[options.dtype])
                _write(packed, options.file)
            else:
                packed = _read(options.adapter, options.revision, fit, None)
                with writing_errors(f"folder {str(options.folder)!r}"):
                    export(packed, options.folder, modules)
        print(_line(packed))
    except MintError as error:
        print(escape_controls(f"{error.reason}: {error}"), file=sys.stderr)  # may quote the adapter's files
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    root = argparse.ArgumentParser(prog="mint-adapter", description=__doc__)
    root.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = root.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="check an adapter against its base and write it as one packed file")
    unpack = commands.add_parser("unpack", help="write a packed or published adapter as PEFT's files")
    for each in (pack, unpack):
        each.add_argument("adapter", help="folder or URI with PEFT's two files or a packed one, or a packed file")
        each.add_argument("--base", type=Path, required=True, help="folder of the base; only its config.json is read")
        each.add_argument("--revision", default="", help="revision of an hf:// URI")
        each.add_argument("--max-rank", type=int, default=MOST_RANK, help="reject larger ranks (default %(default)s)")
    pack.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        default="bfloat16",
        help="number type of the packed weights; best that of the engines (default %(default)s)",
    )
    pack.add_argument("file", type=Path, help="packed file to write; name it adapter.mint in a store")
    unpack.add_argument("folder", type=Path, help="folder to write; must not exist yet")
    show = commands.add_parser("show", help="show the contents of a packed file")
    show.add_argument("file", type=Path, help="packed file to read")
    return root


def _read(adapter: str, revision: str, fit: Fit, dtype: torch.dtype | None) -> Packed:
    """Return the adapter that a folder, URI or packed file holds, in `dtype`. Raises as `read_adapter`."""
    path = Path(adapter)
    folder: Folder
    if "://" in adapter:
        folder = folder_of(Source(adapter, revision))
    elif path.is_dir():
        # Links are followed wherever the caller may read: in the hub's cache each file is one, out of its folder.
        folder = LocalFolder(path.resolve(), f"adapter {adapter!r}", fence=Path("/"))
    else:
        folder = _Alone(path)
    return read_adapter(folder, fit, dtype)


class _Alone:
    """A packed file of any name, as a `Folder` that contains only it."""

    def __init__(self, path: Path) -> None:
        self._path, self.subject = path, f"file {str(path)!r}"

    def files(self, *_names: str) -> dict[str, int | None]:
        """Return the file's size under the name PACKED. Raises SourceNotFound."""
        _refuse_missing(self._path)
        return {PACKED: self._path.stat().st_size}

    @contextmanager
    def open(self, _name: str) -> Iterator[BinaryIO]:
        """Open the file, whatever the name."""
        with os_errors(self.subject), self._path.open("rb") as file:
            yield file

    def check_same(self, *_names: str) -> None:
        """Do nothing: the file's own digest shows any change."""


def base_model(base: Path) -> PreTrainedModel:
    """Return a base without its weights, from its config.json alone. Raises SourceNotFound, and as `read_config`."""
    folder, subject = base.parent if base.name == "config.json" else base, f"base {str(base)!r}"
    if not (folder / "config.json").is_file():  # transformers would look for it on the hub
        raise SourceNotFound(subject, "has no config.json; give a base's folder, or its config.json")
    config, _ = read_config(BaseFiles(folder, None, subject))
    return empty_model(config, subject)


def _open(file: Path) -> Packed:
    _refuse_missing(file)
    with os_errors(subject := f"file {str(file)!r}"):
        return Opener().open(file, subject)


def _refuse_missing(file: Path) -> None:
    if not file.is_file():
        raise SourceNotFound(f"file {str(file)!r}", "is not a file; check its path")


def _refuse_folder(file: Path) -> None:
    if not file.name or file.is_dir():
        raise InvalidRequest(
            f"folder {str(file)!r}", "is a folder; name the packed file to write, for example FOLDER/adapter.mint"
        )


def _write(packed: Packed, file: Path) -> None:
    partial = file.with_name(f".partial-{secrets.token_hex(8)}-{file.name}")  # pods' process ids are often the same
    try:
        with writing_errors(f"file {str(file)!r}"):
            file.parent.mkdir(parents=True, exist_ok=True)
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

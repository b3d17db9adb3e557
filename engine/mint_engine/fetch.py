"""Copying a remote adapter to disk: config and header are checked before the tensors are even asked for."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from mint_contracts.errors import CorruptFile, SourceNotFound, SourceUnavailable, UnsafeFormat
from mint_contracts.source import Source
from mint_engine import header, peft_config
from mint_engine.check import Fit, Part, check_config, check_tensors
from mint_engine.copying import pour, read_bounded, read_up_to, sync
from mint_engine.header import Header
from mint_engine.peft_config import LoraConfig
from mint_engine.storage import Folder, folder_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")


def adapter_files(folder: Folder) -> dict[str, int | None]:
    """The folder's files with their bytes, once it holds a PEFT adapter in safetensors.

    Raises UnsafeFormat where its weights are pickled only, SourceNotFound where a file is missing.
    """
    found = folder.files(CONFIG, WEIGHTS)
    if WEIGHTS not in found:
        pickled = sorted({**found, **folder.files(*PICKLES)}.keys() & set(PICKLES)) if found else []
        if pickled:
            raise UnsafeFormat(folder.subject, f"holds {pickled[0]}, which is pickled; save it as {WEIGHTS}")
    missing = [name for name in (CONFIG, WEIGHTS) if name not in found]
    if missing:
        raise SourceNotFound(folder.subject, f"holds no {' and no '.join(missing)}; check its path and revision")
    return found


def read_header(file: BinaryIO, subject: str, file_bytes: int | None) -> tuple[bytes, Header]:
    """The file's first bytes up to its tensors, and what they say. Raises CorruptFile or UnsafeFormat."""
    start = read_up_to(file, header.LENGTH_BYTES)
    length = header.header_bytes(start, subject)
    text = read_up_to(file, length)
    if len(text) < length:
        raise CorruptFile(subject, f"is truncated: {len(text)} bytes of a header of {length}; upload it again")
    return start + text, header.parse(text, subject, file_bytes=file_bytes)


def check_adapter(folder: Folder, fit: Fit) -> tuple[LoraConfig, tuple[Part, ...]]:
    """Check an adapter without reading its tensors."""
    found = adapter_files(folder)
    config = peft_config.parse(read_bounded(folder, CONFIG, peft_config.MAX_CONFIG_BYTES), folder.subject)
    check_config(config, fit, folder.subject)
    with folder.open(WEIGHTS) as file:
        _, table = read_header(file, folder.subject, found[WEIGHTS])
    return config, check_tensors(config, table, fit, folder.subject)


def copy_adapter(source: Source, fit: Fit, into: Path, admit: Callable[[int], None]) -> None:
    """Copy a remote adapter's two files into the empty folder `into`, durably.

    The base's shapes bound the bytes, which are told to `admit` before they arrive; it raises where there is no room.
    Raises every error that a check can, and Source* errors.
    """
    folder = folder_of(source)
    found = adapter_files(folder)
    text = read_bounded(folder, CONFIG, peft_config.MAX_CONFIG_BYTES)
    config = peft_config.parse(text, folder.subject)
    check_config(config, fit, folder.subject)
    with folder.open(WEIGHTS) as file, (into / WEIGHTS).open("wb") as out:
        start, table = read_header(file, folder.subject, found[WEIGHTS])
        check_tensors(config, table, fit, folder.subject)
        admit(len(text) + table.file_bytes)
        out.write(start)
        copied = len(start) + pour(file, out, table.file_bytes - len(start) + 1)
    if copied > table.file_bytes:
        raise CorruptFile(folder.subject, f"has bytes beyond the {table.file_bytes} that its header tells of")
    if copied < table.file_bytes:
        cause = "upload it again" if found[WEIGHTS] is None else "retrying"
        kind = CorruptFile if found[WEIGHTS] is None else SourceUnavailable
        raise kind(folder.subject, f"gave {copied} bytes where its header tells of {table.file_bytes}; {cause}")
    (into / CONFIG).write_bytes(text)
    for name in (WEIGHTS, CONFIG):
        sync(into / name)

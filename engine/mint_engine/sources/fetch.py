"""The content of an adapter's source: PEFT's two files or one packed file, and the header of either."""

from typing import BinaryIO

from mint_contracts.errors import CorruptFile, SourceNotFound, UnsafeFormat
from mint_engine.adapters import header
from mint_engine.adapters.header import Tensors
from mint_engine.sources.copying import read_up_to
from mint_engine.sources.storage import Folder

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PACKED = "adapter.mint"  # if a source has it, its PEFT files are ignored
PICKLES = ("adapter_model.bin", "adapter_model.pt")


def adapter_files(folder: Folder) -> dict[str, int | None]:
    """Return a folder's files with their sizes, if it has an adapter: a packed one, or PEFT's in safetensors.

    Raises UnsafeFormat if its weights are only pickled, SourceNotFound if a file is missing.
    """
    found = folder.files(CONFIG, WEIGHTS, PACKED)
    if PACKED in found:
        return found
    if WEIGHTS not in found and (pickled := sorted(folder.files(*PICKLES).keys() & set(PICKLES))):
        raise UnsafeFormat(folder.subject, f"holds {pickled[0]}, which is pickled; save it as {WEIGHTS}")
    missing = [name for name in (CONFIG, WEIGHTS) if name not in found]
    if missing:
        raise SourceNotFound(folder.subject, f"holds no {' and no '.join(missing)}; check its path and revision")
    return found


def read_header(file: BinaryIO, subject: str, file_bytes: int | None, most: int) -> Tensors:
    """Read the header of a safetensors file of at most `most` tensors, all bytes before these.

    Raises CorruptFile, UnsafeFormat or UnsupportedAdapter.
    """
    start = read_up_to(file, header.LENGTH_BYTES)
    length = header.header_bytes(start, subject)
    text = read_up_to(file, length)
    if len(text) < length:
        raise CorruptFile(subject, f"is truncated: {len(text)} bytes of a header of {length}; upload it again")
    return header.parse(text, subject, file_bytes=file_bytes, most=most)

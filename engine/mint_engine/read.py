"""Reading a checked adapter into host memory: one pass over its bytes for digest, tensors and the NaN guard."""

import hashlib

import torch

from mint_contracts.errors import CorruptFile, NonFiniteWeights
from mint_engine import peft_config
from mint_engine.adapter import AdapterWeights, Delta
from mint_engine.check import Fit, Part, check_config, check_tensors
from mint_engine.copying import read_bounded
from mint_engine.fetch import CONFIG, WEIGHTS, adapter_files, read_header
from mint_engine.header import TensorSpec
from mint_engine.local import LocalFolder

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_adapter(adapter: str, folder: LocalFolder, fit: Fit, dtype: torch.dtype) -> AdapterWeights:
    """Check and read an adapter's folder; its tensors come in the base's `dtype`.

    The very bytes that are checked are hashed and used, so a file that changes meanwhile can not slip through.
    `revision` is "sha256:" over the canonical config, a zero byte and the safetensors file. Raises every error of
    `check`, NonFiniteWeights naming the tensor, and Source* errors.
    """
    found = adapter_files(folder)
    config = peft_config.parse(read_bounded(folder, CONFIG, peft_config.MAX_CONFIG_BYTES), folder.subject)
    check_config(config, fit, folder.subject)
    with folder.open(WEIGHTS) as file:
        start, table = read_header(file, folder.subject, found[WEIGHTS])
        parts = check_tensors(config, table, fit, folder.subject)
        blob = bytearray(table.file_bytes - len(start))
        view, filled = memoryview(blob), 0
        while filled < len(blob) and (count := file.readinto(view[filled:])):
            filled += count
        if filled < len(blob) or file.read(1):
            raise CorruptFile(folder.subject, "changed while it was read; write it once, then leave it alone")
    digest = hashlib.sha256(config.canonical + b"\0" + start)
    digest.update(blob)
    deltas = {part.path: _delta(part, blob, len(start), dtype, folder.subject) for part in parts}
    rank = max(delta.a.shape[0] for delta in deltas.values())
    return AdapterWeights(adapter=adapter, revision=f"sha256:{digest.hexdigest()}", rank=rank, deltas=deltas)


def _delta(part: Part, blob: bytearray, start: int, dtype: torch.dtype, subject: str) -> Delta:
    a, b = (_tensor(spec, blob, start, dtype, subject) for spec in (part.a, part.b))
    return Delta(a=a, b=b, scaling=part.scaling)


def _tensor(spec: TensorSpec, blob: bytearray, start: int, dtype: torch.dtype, subject: str) -> torch.Tensor:
    """One tensor in `dtype`; it shares the file's bytes where the file has that dtype already."""
    stored, offset = _DTYPES[spec.dtype], spec.begin - start
    if offset % stored.itemsize:
        piece = blob[offset : spec.end - start]
        tensor = torch.frombuffer(piece, dtype=stored)
    else:
        count = (spec.end - spec.begin) // stored.itemsize
        tensor = torch.frombuffer(blob, dtype=stored, count=count, offset=offset)
    tensor = tensor.view(spec.shape).to(dtype)
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteWeights(subject, f"holds NaN or infinity in {spec.name[:200]} (as {dtype}); train it again")
    return tensor

"""Reads a GGUF file's tensors a layer at a time, by transformers' own parts.

On its own, transformers has a whole base in host memory, dequantised, before any of it goes to the model.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import PreTrainedModel, modeling_gguf_pytorch_utils
from transformers.quantizers.quantizer_gguf import GgufHfQuantizer
from transformers.utils.loading_report import LoadStateDictInfo

from mint_contracts.records import LOADING
from mint_engine.model.files import BaseFiles, check_enough
from mint_engine.model.stored import Stored
from mint_engine.model.weight_loader import load_weights
from mint_engine.sources.load_progress import LoadProgress

_BLOCK = "blk."  # of the names of a layer's tensors, before its number

_parts: Any = modeling_gguf_pytorch_utils  # whose functions have no types
_read_whole: Any = GgufHfQuantizer.get_state_dict


def _not_yet(quantizer: Any, path: str, model: PreTrainedModel) -> dict[str, Any]:
    """Return no tensors where transformers would read all of them; newer readers of its own read one by one."""
    return _read_whole(quantizer, path, model) if quantizer.supported else {}


GgufHfQuantizer.get_state_dict = _not_yet  # type: ignore[method-assign, assignment]


def load_gguf(
    model: PreTrainedModel,
    files: BaseFiles,
    tensors: dict[str, Stored],
    loading: Any,
    device: torch.device,
    progress: LoadProgress,
) -> LoadStateDictInfo:
    """Read a file into a model on the device; return what of the model it does not fill.

    `tensors` are those that transformers reads one by one, and otherwise empty. Raises UnsupportedBase if the file
    holds too little.
    """
    assert files.gguf is not None  # noqa: S101 - for the type checker
    path = files.folder / files.gguf
    reader: Any = gguf.GGUFReader(path)  # a head with a large vocabulary takes a tenth of a second to read
    check_enough(files, model, sum(int(each.n_elements) for each in reader.tensors))
    found = load_weights(model, tensors, loading, device=device)
    for some in _layers(reader, path, model, progress) if not tensors else ():
        info = load_weights(model, some, loading, device=device)
        found.missing_keys &= info.missing_keys
        found.unexpected_keys |= info.unexpected_keys
        found.mismatched_keys |= info.mismatched_keys
        found.conversion_errors |= info.conversion_errors
    return found


def _layers(reader: Any, path: Path, model: PreTrainedModel, progress: LoadProgress) -> Iterator[dict[str, Any]]:
    """Yield each layer's tensors by their names in the model, and each tensor outside of layers, in float32.

    Tensors of one layer may become one, such as experts' gates and ups. They are rounded to the model's dtype when
    they are loaded, except those that stay in float32.
    """
    architecture = _parts.read_field(reader, "general.architecture")[0]
    make = _parts.TENSOR_PROCESSORS.get(architecture, _parts.TensorProcessor)
    processor = make(config=_parts.load_gguf_checkpoint(str(path))["config"])
    names = _parts.get_gguf_hf_weights_map(model, processor)
    progress.begin(LOADING, sum(each.data.nbytes for each in reader.tensors))
    for _, some in groupby(sorted(reader.tensors, key=_part), _part):
        parsed: dict[str, dict[str, Any]] = {"tensors": {}}
        for each in some:
            weights = gguf.dequantize(each.data, each.tensor_type)
            made = processor.process(
                weights=weights, name=each.name, tensor_key_mapping=names, parsed_parameters=parsed
            )
            if made.name in names:
                parsed["tensors"][names[made.name]] = torch.from_numpy(made.weights.copy())
            progress.moved(each.data.nbytes)
        yield parsed["tensors"]
        parsed["tensors"].clear()  # before the next ones are read


def _part(tensor: Any) -> str:
    """Return which layer a tensor is of; a tensor outside of layers stands alone."""
    name: str = tensor.name
    return name.removeprefix(_BLOCK).partition(".")[0] if name.startswith(_BLOCK) else name

"""transformers' own logits for a short prompt, which every pass over a base must reproduce up to rounding.

They need the complete base. A rank that keeps only a part of it has at most one complete decoder layer at a time.
"""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.loading_report import LoadStateDictInfo

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.base import Admit, Base, Check, admit_any, load_base
from mint_engine.model.cache import PROBE_TOKENS
from mint_engine.model.device import HOST
from mint_engine.model.experts import route_shape
from mint_engine.model.files import LIBRARY_ERRORS, first_line
from mint_engine.model.modules import layers_of, layers_prefix
from mint_engine.model.quantised_experts import every_weight, move
from mint_engine.model.stored import Stored
from mint_engine.model.weight_loader import Name, Naming, load_weights
from mint_engine.parallel.part import Part
from mint_engine.parallel.shard import shard_layer
from mint_engine.sources.load_progress import LoadProgress

LOG_EVERY_S = 10.0  # while a base is being read
OTHERS = 7  # roundings that are tried: each may change one of the probe's closest choices, or not

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Reference:
    """The probe's logits [T, V] float32, and how far rounding alone may move them, relative to their norm.

    `moved` is measured for bases that choose experts, or tokens to attend to: rounding decides between similar
    scores, and what follows is another computation. Two ways to compute such a base need not agree more closely; with
    16 random layers of experts, their logits differ by half of their norm. For other bases it is 0: all that they
    compute is smooth.
    """

    logits: torch.Tensor
    moved: float


def probe(vocabulary: int) -> list[int]:
    """Return the prompt's tokens."""
    return [(7 * at + 1) % vocabulary for at in range(PROBE_TOKENS)]


@torch.inference_mode()
def find_reference(base: Base) -> Reference:
    """Compute the reference of a complete base, before any module is replaced or cut.

    Raises UnsupportedBase if transformers' own modules cannot compute it because its configuration does not fit them.
    """
    try:
        return _refer(base.model)
    except torch.OutOfMemoryError:
        raise
    except LIBRARY_ERRORS as error:
        raise UnsupportedBase(
            base.architecture, f"cannot be computed by transformers: {first_line(error)}"
        ) from error


def load_part(
    path: Path,
    dtype: torch.dtype,
    part: Part,
    admit: Admit = admit_any,
    progress: LoadProgress | None = None,
    listen: Callable[[], None] = lambda: None,
    *,
    quantised_experts: bool = False,
    device: torch.device = HOST,
) -> tuple[Base, Reference]:
    """Load a rank's part of a base, and what the complete base computes. Raises as `load_base` does.

    Each layer is computed in host memory, and then only the rank's part of it is kept, on the `device`. What is
    outside layers stays in host memory. A GGUF file is read completely; the caller must cut it. `listen` is called
    before each layer is read, and raises if loading has become pointless.
    """
    streamed = _Streamed(part, listen, device)
    base = load_base(path, dtype, HOST, streamed, admit, progress, quantised_experts=quantised_experts)
    return base, streamed.reference or find_reference(base)


class _Streamed:
    """Fills a part: first everything outside decoder layers, which every rank has; then one layer at a time.

    Each layer is read when transformers' model reaches it, and cut as soon as it has run, so that nothing is read
    twice.
    """

    def __init__(self, part: Part, listen: Callable[[], None], device: torch.device) -> None:
        self._part, self._listen, self._device = part, listen, device
        self._loading: Any = None
        self._later: dict[str, dict[str, Stored]] = {}  # by layer path
        self._names: dict[str, Name] = {}
        self.reference: Reference | None = None

    def load_weights(self, model: PreTrainedModel, tensors: dict[str, Stored], loading: Any) -> LoadStateDictInfo:
        """See `model.base.Part`."""
        self._part.cut(copy.deepcopy(model))  # if it is refused, then before anything is read
        self._loading, self._names = loading, Naming(model, loading).of_all(tensors)
        self._later = _sort(model, tensors, self._names)
        info = load_weights(model, self._later.pop("", {}), loading, self._names)
        for path, layer in layers_of(model):  # these are read later: no weights are to be made up for them
            info.missing_keys -= layer.state_dict(prefix=f"{path}.").keys()
            for weight in layer.parameters():
                weight._is_hf_initialized = True  # type: ignore[attr-defined]
        return info

    @torch.no_grad()
    def finish(self, model: PreTrainedModel, check: Check) -> None:
        """See `model.base.Part`."""
        layers = list(layers_of(model))
        read, hooks = _Layers(len(layers)), []
        for path, layer in layers:
            hooks.append(layer.register_forward_pre_hook(partial(self._load_layer, model, path, check)))
            hooks.append(layer.register_forward_hook(partial(self._cut_layer, path, read)))
        self.reference = _refer(model)
        for hook in hooks:
            hook.remove()

    def unchecked(self, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
        """See `model.base.Part`: each complete layer has been checked already, except those of a GGUF file."""
        prefix = layers_prefix(model) if self.reference is not None else None
        for name, weight in model.named_parameters():
            if prefix is None or not name.startswith(prefix):
                yield name, weight

    def _load_layer(self, model: PreTrainedModel, path: str, check: Check, layer: nn.Module, _: Any) -> None:
        self._listen()
        info = load_weights(model, self._later.pop(path, {}), self._loading, self._names)
        info.missing_keys &= layer.state_dict(prefix=f"{path}.").keys()
        check(vars(info), every_weight(layer, path))

    def _cut_layer(self, path: str, read: "_Layers", layer: nn.Module, *_: Any) -> None:
        assert self._part.share is not None  # noqa: S101 - see `load_weights`
        shard_layer(path, layer, self._part.share)
        if self._device != HOST:
            move(layer, self._device)
        read.step()


class _Layers:
    """Logs from time to time how many layers have been read: reading takes minutes."""

    def __init__(self, layers: int) -> None:
        self._layers, self._read = layers, 0
        self._began = self._logged = time.monotonic()

    def step(self) -> None:
        """Count one more layer as read."""
        self._read += 1
        now = time.monotonic()
        if self._read == self._layers or now - self._logged >= LOG_EVERY_S:
            self._logged = now
            _log.info("base_read", layers=self._read, of=self._layers, seconds=round(now - self._began, 1))


def _refer(model: PreTrainedModel) -> Reference:
    """Compute the probe's reference; if rounding may change choices, in a batch with differently rounded inputs."""
    text = model.config.get_text_config()
    chooses = route_shape(model) is not None or bool(getattr(text, "index_topk", None))
    tokens = torch.tensor([probe(int(text.vocab_size))] * (1 + OTHERS * chooses), device=model.device)
    hook = model.get_input_embeddings().register_forward_hook(_round_otherwise)
    try:
        found, *others = model(input_ids=tokens, use_cache=False).logits
    finally:
        hook.remove()
    logits = found.to(torch.float32, copy=True)
    moved = max((float((other.float() - logits).norm() / logits.norm()) for other in others), default=0.0)
    return Reference(logits, moved)


def _round_otherwise(_: nn.Module, __: Any, embedded: torch.Tensor) -> torch.Tensor:
    """Move each number of all sequences but the first to an adjacent one, by random draws with a fixed seed."""
    probed, others = embedded[:1], embedded[1:]
    up = torch.randint(0, 2, others.shape, generator=torch.Generator().manual_seed(0)).to(others.device)
    moved = others.double() * (1 + (2 * up - 1) * torch.finfo(others.dtype).eps)
    return torch.cat((probed, moved.to(others.dtype)))


def _sort(
    model: PreTrainedModel, tensors: dict[str, Stored], names: Mapping[str, Name]
) -> dict[str, dict[str, Stored]]:
    """Return a base's tensors by the path of their decoder layer; those outside all layers are under ""."""
    prefix, found = layers_prefix(model), defaultdict[str, dict[str, Stored]](dict)
    for key, tensor in tensors.items():
        name = names[key].whole
        number = name.removeprefix(prefix).partition(".")[0] if name.startswith(prefix) else ""
        found[prefix + number if number else ""][key] = tensor
    return found

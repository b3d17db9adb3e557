"""Loads a base model once, from a local folder of safetensors or one GGUF file; what is quantised is dequantised."""

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.loading_report import LoadStateDictInfo

from mint_contracts.errors import (
    CorruptFile,
    NonFiniteWeights,
    SourceNotFound,
    UnsafeFormat,
    UnsupportedBase,
)
from mint_contracts.quantisation import MODELOPT_FILE, Quantisation, read_quantisation
from mint_engine.model.positions import positions_of
from mint_engine.model.quantised import dequantised
from mint_engine.model.stored import Stored, fill, filled_from, open_tensors

# Families that publish another's architecture under a name of their own, with code that is not run here.
_SAME_ARCHITECTURE = {"kimi_k2": "deepseek_v3"}
_EXPERT = re.compile(r"\.experts\.\d+\.")
_TOKENIZER_FILE = "tokenizer_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
# What transformers raises over a file that it can't make sense of.
_LIBRARY_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    AssertionError,
    IndexError,
    OverflowError,
    struct.error,
    SafetensorError,
)


@dataclass(frozen=True)
class Base:
    """A base model, resident and frozen, as transformers has it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]  # tokens that end a completion
    architecture: str
    context_length: int  # positions that a request may have; 0: no bound
    vocab_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def config(self) -> PreTrainedConfig:
        """The text model's configuration."""
        return self.model.config.get_text_config()


@dataclass(frozen=True)
class _Files:
    folder: Path
    gguf: str | None

    @property
    def subject(self) -> str:
        return f"base {self.folder / self.gguf if self.gguf else self.folder}"


# Raises CorruptFile or NonFiniteWeights over weights that were read; told is what transformers says of its reading.
Check = Callable[[Mapping[str, Any], Iterable[tuple[str, torch.Tensor]]], None]


class Part(Protocol):
    """What is read of a base where not all of it is wanted."""

    def fill(self, model: PreTrainedModel, tensors: dict[str, Stored], loading: Any) -> LoadStateDictInfo:
        """Cut a model that has no memory yet to this part, and read what fills it; or begin to."""
        ...

    def finish(self, model: PreTrainedModel, check: Check) -> None:
        """Read what `fill` has left for later, now that the model has all else that it needs."""
        ...


def load_base(path: Path, dtype: torch.dtype, device: torch.device, part: Part | None = None) -> Base:
    """The base at `path`, or a part of it, in evaluation mode and without gradients.

    Raises SourceNotFound, UnsafeFormat (pickled weights only), CorruptFile, NonFiniteWeights or UnsupportedBase.
    No code of the folder is run, nothing is fetched.
    """
    files = _find(path)
    config, quantisation = _read_config(files)
    if files.gguf is None:
        _check_tensors(files, quantisation)
    tokenizer = _read_tokenizer(files)  # takes seconds; the weights of a large base take many minutes
    model = _read_model(files, config, quantisation, dtype, part)
    nn.Module.to(model, device)
    model.train(False)
    model.requires_grad_(False)
    _check_read(files, {}, model.named_parameters())
    text = config.get_text_config()
    return Base(
        model=model,
        tokenizer=tokenizer,
        eos=_eos(model, tokenizer),
        architecture=type(model).__name__,
        context_length=positions_of(text),
        vocab_size=int(text.vocab_size),
        dtype=dtype,
        device=device,
    )


def _find(path: Path) -> _Files:
    subject = f"base {path}"
    if not path.exists():
        raise SourceNotFound(subject, "does not exist; check spec.source of the BaseModel")
    if path.is_file():
        if path.suffix != ".gguf":
            raise UnsafeFormat(subject, "is neither a folder of safetensors nor a .gguf file")
        return _check_gguf(_Files(path.parent, path.name))
    names = sorted(each.name for each in path.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return _check_safetensors(_Files(path, None), names)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return _check_gguf(_Files(path, ggufs[0]))
    if ggufs:
        raise UnsupportedBase(subject, f"holds several GGUF files; name one of {', '.join(ggufs)}")
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        raise UnsafeFormat(subject, f"holds only {', '.join(pickles[:3])}; convert the weights to safetensors")
    raise SourceNotFound(subject, "holds no *.safetensors and no *.gguf")


def _check_gguf(files: _Files) -> _Files:
    with (files.folder / str(files.gguf)).open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CorruptFile(files.subject, "does not start as a GGUF file does")
    return files


def _check_safetensors(files: _Files, names: list[str]) -> _Files:
    """Every shard that the index names is there, and every header agrees with its file's size."""
    index = files.folder / "model.safetensors.index.json"
    if index.exists():
        try:
            shards = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError):
            raise CorruptFile(files.subject, f"has an unreadable {index.name}") from None
        if absent := sorted(str(shard) for shard in shards if shard not in names):
            raise CorruptFile(files.subject, f"lacks {', '.join(absent[:3])}, named by {index.name}")
    for name in names:
        if name.endswith(".safetensors"):
            try:
                with safe_open(files.folder / name, framework="pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise CorruptFile(files.subject, f"{name} is truncated or no safetensors file ({error})") from None
    return files


def _check_tensors(files: _Files, quantisation: Quantisation | None) -> None:
    """By the headers alone, what transformers would take as it is, or complain of without a name.

    No weight needs a scale that nothing tells of, and experts that become one tensor are of one shape.
    """
    firsts: dict[str, tuple[str, list[int]]] = {}
    shards = [str(each) for each in files.folder.glob("*.safetensors")]
    for name, tensor in open_tensors(shards).items():
        if quantisation is None and tensor.get_dtype().startswith("F8"):
            raise UnsupportedBase(
                files.subject, f"has float8 weights, {name} among them, but no quantization_config in its config.json"
            )
        if _EXPERT.search(name) and name.endswith(".weight"):
            shape = list(tensor.get_shape())
            first, expected = firsts.setdefault(_EXPERT.sub(".experts.*.", name), (name, shape))
            if shape != expected:
                raise CorruptFile(files.subject, f"has {first} of {expected}, but {name} of {shape}")


def _read_config(files: _Files) -> tuple[PreTrainedConfig, Quantisation | None]:
    """The configuration of the model as it is held, which is not quantised, and how its files hold it."""
    if files.gguf is not None:
        return _load_config(files), None
    raw = _read_object(files, "config.json")
    if "quantization_config" not in raw and (files.folder / MODELOPT_FILE).exists():
        raw["quantization_config"] = _read_object(files, MODELOPT_FILE)
    quantisation = read_quantisation(raw, files.subject)
    known = _SAME_ARCHITECTURE.get(str(raw.get("model_type", "")))
    config = _config_for(files, known, raw) if known else _load_config(files)
    for each in (config, config.get_text_config()):
        if hasattr(each, "quantization_config"):
            del each.quantization_config
    return config, quantisation


def _read_object(files: _Files, name: str) -> dict[str, Any]:
    try:
        found = json.loads((files.folder / name).read_text())
    except FileNotFoundError:
        raise CorruptFile(files.subject, f"holds no {name}") from None
    except (OSError, ValueError):
        raise CorruptFile(files.subject, f"has a {name} that is not JSON") from None
    if not isinstance(found, dict):
        raise CorruptFile(files.subject, f"has a {name} that is not a JSON object")
    return found


def _load_config(files: _Files) -> PreTrainedConfig:
    options = {"gguf_file": files.gguf} if files.gguf else {}
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False, **options
        )
    except _LIBRARY_ERRORS as error:
        raise UnsupportedBase(
            files.subject, f"has a configuration that is not served: {_first_line(error)}"
        ) from None
    return config


def _config_for(files: _Files, model_type: str, raw: dict[str, Any]) -> PreTrainedConfig:
    try:
        told = {key: value for key, value in raw.items() if key != "model_type"}
        config: PreTrainedConfig = AutoConfig.for_model(model_type, **told)
    except _LIBRARY_ERRORS as error:
        raise UnsupportedBase(
            files.subject, f"has a configuration that is not served: {_first_line(error)}"
        ) from None
    return config


def _read_model(
    files: _Files,
    config: PreTrainedConfig,
    quantisation: Quantisation | None,
    dtype: torch.dtype,
    part: Part | None,
) -> PreTrainedModel:
    def read(model: PreTrainedModel, tensors: dict[str, Stored], loading: Any) -> LoadStateDictInfo:
        if quantisation is not None:
            tensors = dequantised(tensors, quantisation, dtype, files.subject)
        return fill(model, tensors, loading) if part is None else part.fill(model, tensors, loading)

    options = (
        {"gguf_file": files.gguf, "quantization_config": GgufConfig(dequantize=True)}
        if files.gguf
        # Other shapes are told of below, by name.
        else {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    )
    try:
        reader: Any = AutoModelForCausalLM
        if not files.gguf:
            with torch.device("meta"):
                reader = filled_from(type(reader.from_config(config)), read)
        loaded = reader.from_pretrained(
            files.folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
        if files.gguf:  # read whole: transformers offers no way to read a part of one
            return loaded  # type: ignore[no-any-return]
        model, info = loaded
        _check_read(files, info)
        if part is not None:
            part.finish(model, partial(_check_read, files))
    except _LIBRARY_ERRORS as error:
        raise UnsupportedBase(files.subject, f"can't be loaded: {_first_line(error)}") from None
    return model  # type: ignore[no-any-return]


def _check_read(files: _Files, info: Mapping[str, Any], weights: Iterable[tuple[str, torch.Tensor]] = ()) -> None:
    """See `Check`."""
    if missing := sorted(info.get("missing_keys", ())):
        raise CorruptFile(files.subject, f"lacks {len(missing)} weights, the first {missing[0]}")
    if mismatched := sorted(info.get("mismatched_keys", ())):
        name, found, expected = mismatched[0]
        raise CorruptFile(
            files.subject,
            f"has weights of other shapes than its config.json: {name} of {list(found)}, not {list(expected)}",
        )
    for name, weight in weights:
        if not _is_finite(weight):
            raise NonFiniteWeights(files.subject, f"has NaN or infinity in {name}")


def _is_finite(weight: torch.Tensor) -> bool:
    """By its smallest and largest number, which are NaN where any is: a twentieth of what `isfinite` of all takes."""
    return weight.numel() == 0 or bool(torch.stack(torch.aminmax(weight)).isfinite().all())


def _read_tokenizer(files: _Files) -> PreTrainedTokenizerBase:
    options = {"gguf_file": files.gguf} if files.gguf else {}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            files.folder, local_files_only=True, trust_remote_code=False, **options
        )
    except _LIBRARY_ERRORS as error:
        if _has_tokenizer_code(files):
            raise UnsupportedBase(
                files.subject,
                "has a tokenizer that is code of its own, which is not run here; put a tokenizer.json beside its "
                f"weights and take auto_map out of {_TOKENIZER_FILE}",
            ) from None
        raise UnsupportedBase(files.subject, f"has no tokenizer that can be loaded: {_first_line(error)}") from None
    return tokenizer


def _has_tokenizer_code(files: _Files) -> bool:
    return (files.folder / _TOKENIZER_FILE).exists() and "auto_map" in _read_object(files, _TOKENIZER_FILE)


def _eos(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """What generate() would stop at, and the tokenizer's own end of sequence."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*found, tokenizer.eos_token_id) if isinstance(token, int))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__

"""Loads a base model once, from a local folder of safetensors or one GGUF file, and dequantises it if necessary."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.loading_report import LoadStateDictInfo

from mint_contracts.errors import NonFiniteWeights, UnsupportedBase
from mint_contracts.quantisation import Quantisation
from mint_engine.model.described import check_described
from mint_engine.model.files import (
    LIBRARY_ERRORS,
    BaseFiles,
    check_enough,
    check_tensors,
    find_files,
    first_line,
    numbers_in,
    read_config,
    read_tokenizer,
)
from mint_engine.model.gguf_config import supply
from mint_engine.model.gguf_tensors import load_gguf
from mint_engine.model.positions import positions_of
from mint_engine.model.quantised import dequantised
from mint_engine.model.quantised_experts import every_weight, keep_experts, move, nothing_to_keep
from mint_engine.model.stored import Stored, counted
from mint_engine.model.upcast import fit_products
from mint_engine.model.weight_loader import LoadWeights, load_weights, with_loader
from mint_engine.requests.channels import Channels, find_channels
from mint_engine.requests.thoughts import Markers, find_markers
from mint_engine.sources.load_progress import LoadProgress


@dataclass(frozen=True)
class Base:
    """A base model as transformers represents it, resident and frozen."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos: frozenset[int]  # tokens that end a completion
    architecture: str
    context_length: int  # most positions of a request: as known, or fewer if an engine says so; 0: no bound
    vocab_size: int
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def channels(self) -> Channels | None:
        """The markers of its channels, if it has any."""
        return find_channels(self.tokenizer)

    @cached_property
    def markers(self) -> Markers | None:
        """The markers of its thoughts, if it has any."""
        return find_markers(self.tokenizer)

    @property
    def end(self) -> int | None:
        """The token that ends a text: the tokenizer's end of sequence, or else generate()'s first stop token."""
        return next(iter(_ends(self.model, self.tokenizer)), None)

    @property
    def config(self) -> PreTrainedConfig:
        """The text model's configuration."""
        return self.model.config.get_text_config()


# Checks transformers' loading report and weights that were read; raises UnsupportedBase or NonFiniteWeights.
Check = Callable[[Mapping[str, Any], Iterable[tuple[str, torch.Tensor]]], None]


class Part(Protocol):
    """What to read of a base if only a part of it is wanted."""

    def load_weights(self, model: PreTrainedModel, tensors: dict[str, Stored], loading: Any) -> LoadStateDictInfo:
        """Cut a model that has no memory yet to this part, and read its weights, or begin to."""
        ...

    def finish(self, model: PreTrainedModel, check: Check) -> None:
        """Read what `load_weights` left for later, when the model has everything else that it needs."""
        ...

    def unchecked(self, model: PreTrainedModel) -> Iterable[tuple[str, torch.Tensor]]:
        """Return the weights that have been read but that `finish` did not check."""
        ...


# Raises a MintError to refuse a base of that configuration; errors name the base by the given subject.
Admit = Callable[[PreTrainedConfig, str], None]


def admit_any(*_: object) -> None:
    """Accept any base."""


def load_base(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    part: Part | None = None,
    admit: Admit = admit_any,
    progress: LoadProgress | None = None,
    *,
    quantised_experts: bool = False,
) -> Base:
    """Load the base at `path`, or a part of it, in evaluation mode and without gradients.

    Each tensor is on the device as soon as it is read (of a GGUF file, each layer), except those of a `part`, which
    decides about them. With `quantised_experts`, routed experts stay quantised as in the files, see that module.

    Raises SourceNotFound, UnsafeFormat (pickled weights only), CorruptFile, NonFiniteWeights, UnsupportedBase or
    CapacityExceeded, and whatever `admit` raises, which is called before any weight is read. No code from the folder
    is run, and nothing is fetched. `progress` is notified of what is read.
    """
    fit_products(dtype, device)
    files = find_files(path)
    config, quantisation = read_config(files)
    admit(config, files.subject)
    if quantised_experts and quantisation is None:
        raise nothing_to_keep(files.subject)
    if files.gguf is None:
        check_tensors(files, quantisation)
    tokenizer = read_tokenizer(files)  # takes seconds; the weights of a large base take many minutes
    model = _read_model(
        files, config, quantisation, (dtype, device), part, progress or LoadProgress(), keep=quantised_experts
    )
    if part is None:  # of the model, what was not read from tensors
        move(model, device)
    model.train(False)
    model.requires_grad_(False)
    _check_read(files, {}, every_weight(model) if part is None else part.unchecked(model))
    text = config.get_text_config()
    return Base(
        model=model,
        tokenizer=tokenizer,
        eos=frozenset(_ends(model, tokenizer)),
        architecture=type(model).__name__,
        context_length=positions_of(text),
        vocab_size=int(text.vocab_size),
        dtype=dtype,
        device=device,
    )


def _kind(config: PreTrainedConfig) -> Any:
    """Return the auto class for a configuration: some vision models have no text-only one, though they get text."""
    sees = type(config) in AutoModelForImageTextToText._model_mapping
    plain = type(config) in AutoModelForCausalLM._model_mapping
    return AutoModelForImageTextToText if sees and not plain else AutoModelForCausalLM


def empty_model(config: PreTrainedConfig, subject: str) -> PreTrainedModel:
    """Return a model of that configuration without memory. Raises UnsupportedBase."""
    try:
        with torch.device("meta"):
            return _kind(config).from_config(config)  # type: ignore[no-any-return]
    except LIBRARY_ERRORS as error:
        raise UnsupportedBase(subject, f"cannot be loaded: {first_line(error)}") from None


def _read_model(
    files: BaseFiles,
    config: PreTrainedConfig,
    quantisation: Quantisation | None,
    kind: tuple[torch.dtype, torch.device],
    part: Part | None,
    progress: LoadProgress,
    *,
    keep: bool,
) -> PreTrainedModel:
    dtype, device = kind

    def read(model: PreTrainedModel, tensors: dict[str, Stored], loading: Any) -> LoadStateDictInfo:
        if files.gguf is not None:  # completely: a part of it is cut when all is there
            return load_gguf(model, files, tensors, loading, device, progress)
        check_enough(files, model, numbers_in(tensors))
        tensors = counted(tensors, progress)
        if quantisation is not None:
            tensors = dequantised(tensors, quantisation, dtype, files.subject)
        check_described(model, tensors, loading, files.subject)
        if keep:
            tensors = keep_experts(tensors, files.subject)
            model.set_experts_implementation("eager")  # the eager implementation takes one expert at a time
        load: LoadWeights = part.load_weights if part is not None else partial(load_weights, device=device)
        return _merged(load(model, tensors, loading), files.subject)

    # Mismatched shapes are reported below, by name.
    options: dict[str, Any] = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if files.gguf:
        options |= {"gguf_file": files.gguf, "quantization_config": GgufConfig(dequantize=True)}
    try:
        reader: Any = with_loader(type(empty_model(config, files.subject)), read)
        model, info = reader.from_pretrained(
            files.folder,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
        _check_read(files, info)
        if files.gguf:
            supply(model, files.folder / files.gguf, files.subject)
            return model  # type: ignore[no-any-return]
        if part is not None:
            part.finish(model, partial(_check_read, files))
    except torch.OutOfMemoryError:
        raise
    except LIBRARY_ERRORS as error:
        raise UnsupportedBase(files.subject, f"cannot be loaded: {first_line(error)}") from None
    return model  # type: ignore[no-any-return]


def _merged(info: LoadStateDictInfo, subject: str) -> LoadStateDictInfo:
    """Return the report. Raises UnsupportedBase for weights that were not merged, which transformers only logs."""
    if (unmade := min(info.conversion_errors, default=None)) is not None:
        raise UnsupportedBase(subject, f"has weights of {unmade} that do not fit together, or lacks some of them")
    return info


def _check_read(files: BaseFiles, info: Mapping[str, Any], weights: Iterable[tuple[str, torch.Tensor]] = ()) -> None:
    """See `Check`."""
    if missing := sorted(info.get("missing_keys", ())):
        raise UnsupportedBase(files.subject, f"lacks {len(missing)} weights, the first {missing[0]}")
    if mismatched := sorted(info.get("mismatched_keys", ())):
        name, found, expected = mismatched[0]
        raise UnsupportedBase(
            files.subject,
            f"has weights of other shapes than its config.json: {name} of {list(found)}, not {list(expected)}",
        )
    for name, weight in weights:
        if not _is_finite(weight):
            raise NonFiniteWeights(files.subject, f"has NaN or infinity in {name}")


def _is_finite(weight: torch.Tensor) -> bool:
    """Whether all numbers are finite, by minimum and maximum (NaN if any is): a twentieth of `isfinite`'s time."""
    return weight.numel() == 0 or bool(torch.stack(torch.aminmax(weight)).isfinite().all())


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokenizer's own end of sequence, followed by the tokens at which generate() would stop.

    Of gpt-oss' two, one may be missing in what others have saved: after a call, the model would write its result.
    """
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    channels = find_channels(tokenizer)
    ends = (tokenizer.eos_token_id, *found, *(channels.ends if channels is not None else ()))
    return [token for token in ends if isinstance(token, int)]

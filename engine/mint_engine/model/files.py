"""A base's files: finds them and reads configuration and tokenizer, before any weight is read."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)

from mint_contracts.base_sizes import odd_size
from mint_contracts.errors import CorruptFile, SourceNotFound, UnsafeFormat, UnsupportedBase
from mint_contracts.quantisation import MODELOPT_FILE, Quantisation, read_quantisation
from mint_engine.model.chat_template import take_text
from mint_engine.model.gguf_config import check_read, complete
from mint_engine.model.gguf_tokenizer import split_as_told
from mint_engine.model.integers import WORDS
from mint_engine.model.positions import check_theta, with_attention_factors
from mint_engine.model.quantised_experts import EXPERT
from mint_engine.model.stored import Stored, open_tensors
from mint_engine.sources.fetch_base import INDEX, PROBED, SUFFIXES, WHOLE, several_ggufs, weights_read
from mint_engine.sources.gguf_head import MAGIC, read_head

# Families that publish another family's architecture under their own name, with code that is not run here.
_SAME_ARCHITECTURE = {"kimi_k2": "deepseek_v3"}
_MOST_JSON_BYTES = 64 << 20  # of a configuration or an index; those of the largest bases are about 10 MB
_TOKENIZER_FILE, _TOKENIZER_SETTINGS = "tokenizer.json", "tokenizer_config.json"
_VOCABULARIES = {"tokenizer.model", "tekken.json", "vocab.json", "merges.txt"}  # not read beside a tokenizer.json
_PROCESSORS_TEMPLATE = "chat_template.json"  # where vision-language bases may have the only one (Mistral Small 3.1)
_LLAMAS = ("LlamaTokenizer", "LlamaTokenizerFast")
_POINTER, _MOST_POINTER_BYTES = b"version https://git-lfs", 1024
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_WHOLE = frozenset({"I64", "I32", "I16", "I8", "U8", "BOOL"})  # integer types, by safetensors' names
_NUMBERS_IN = {"U8": 2, "I8": 2, "I32": 8, "I64": 16}  # most numbers that may be packed in one element
# What transformers raises for a file that it cannot make sense of.
LIBRARY_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    AssertionError,
    IndexError,
    ArithmeticError,
    struct.error,
    SafetensorError,
    StrictDataclassError,
)


@dataclass(frozen=True)
class BaseFiles:
    """A base's folder, and its weights' file name if that is a GGUF file."""

    folder: Path
    gguf: str | None
    named: str = ""  # how errors name the base, if not by its path

    @property
    def subject(self) -> str:
        """How errors name the base."""
        return self.named or f"base {self.folder / self.gguf if self.gguf else self.folder}"


def find_files(path: Path) -> BaseFiles:
    """Find a base's files at `path`; of its weights, only headers are read.

    Raises SourceNotFound, UnsafeFormat (pickled weights only), CorruptFile or UnsupportedBase.
    """
    subject = f"base {path}"
    if not path.exists():
        raise SourceNotFound(subject, "does not exist; check spec.source of the BaseModel")
    if path.is_file():
        if path.suffix != ".gguf":
            raise UnsafeFormat(subject, "is neither a folder of safetensors nor a .gguf file")
        return check_start(BaseFiles(path.parent, path.name))
    names = sorted(each.name for each in path.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        return _check_safetensors(BaseFiles(path, None), names)
    ggufs = [name for name in names if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return check_start(BaseFiles(path, ggufs[0]))
    if ggufs:
        raise UnsupportedBase(subject, several_ggufs(ggufs))
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        raise UnsafeFormat(subject, f"has only {', '.join(pickles[:3])}; convert the weights to safetensors")
    raise SourceNotFound(subject, "has no *.safetensors and no *.gguf; check spec.source of the BaseModel")


def check_start(files: BaseFiles) -> BaseFiles:
    """Return the files. Raises CorruptFile for a GGUF file without a readable head."""
    if files.gguf is not None:
        _check_fetched(files, files.gguf)
        with (files.folder / files.gguf).open("rb") as file:
            if not read_head(file, files.subject).startswith(MAGIC):
                raise CorruptFile(files.subject, "does not start like a GGUF file")
    return files


def _check_safetensors(files: BaseFiles, names: list[str]) -> BaseFiles:
    """Check that all shards named by the index exist, and that all headers read agree with their files' sizes."""
    shards, metadata = _read_index(files)
    if absent := sorted(shard for shard in shards if shard not in names):
        raise CorruptFile(files.subject, f"lacks {', '.join(absent[:3])}, named by {INDEX}")
    if shards and WHOLE not in names and not isinstance(metadata, dict):
        raise CorruptFile(
            files.subject, f'has a {INDEX} without "metadata", which transformers reads: put {{}} there'
        )
    read = weights_read(names, shards)
    small = set(PROBED).intersection(names) - (_VOCABULARIES if _TOKENIZER_FILE in names else set())
    for name in sorted(read | small):
        _check_fetched(files, name)
    for name in sorted(read):
        try:
            with safe_open(files.folder / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CorruptFile(files.subject, f"{name} is truncated or not a safetensors file ({error})") from None
    return files


def _check_fetched(files: BaseFiles, name: str) -> None:
    """Raise CorruptFile for a file that Git has left to its large file storage, as a clone without git-lfs does."""
    path = files.folder / name
    small = name.endswith(SUFFIXES) and path.is_file() and path.stat().st_size <= _MOST_POINTER_BYTES
    if small and path.read_bytes().startswith(_POINTER):
        raise CorruptFile(files.subject, f"has a Git LFS pointer in place of {name}; fetch it with git lfs pull")


def _read_index(files: BaseFiles) -> tuple[set[str], object]:
    """Return the weight files that an index names, and its metadata; nothing without an index."""
    try:
        index = _read_json(files.folder / INDEX)
        return {str(name) for name in index["weight_map"].values()}, index.get("metadata")
    except FileNotFoundError:
        return set(), None
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise CorruptFile(files.subject, f"has an unreadable {INDEX}") from None


def check_tensors(files: BaseFiles, quantisation: Quantisation | None) -> None:
    """Check, by headers alone, what transformers would accept silently or refuse without a name.

    No weight may need a scale that nothing describes, and experts that become one tensor must have one shape.
    Raises UnsupportedBase, and CorruptFile if a file cannot be read.
    """
    firsts: dict[str, tuple[str, list[int]]] = {}
    names = weights_read([each.name for each in files.folder.iterdir()], _read_index(files)[0])
    for name, tensor in open_tensors(str(files.folder / each) for each in sorted(names)).items():
        packed = name.endswith(f".{WORDS}")
        if quantisation is None and (kind := _quantised(name, tensor.get_dtype())):
            raise UnsupportedBase(
                files.subject, f"has {kind} weights, {name} among them, but no quantization_config in its config.json"
            )
        if EXPERT.search(name) and (packed or name.endswith(".weight")):
            shape = list(tensor.get_shape())
            first, expected = firsts.setdefault(EXPERT.sub(".experts.*.", name), (name, shape))
            if shape != expected:
                raise UnsupportedBase(files.subject, f"has {first} of {expected}, but {name} of {shape}")


def _quantised(name: str, kind: str) -> str:
    """Return how a tensor is quantised, as far as its name and dtype tell; "" if it is not."""
    if kind.startswith("F8"):
        return "float8"
    if name.endswith(f".{WORDS}"):
        return "packed"
    return "integer" if name.endswith(".weight") and kind in _WHOLE else ""


def check_enough(files: BaseFiles, model: torch.nn.Module, held: int) -> None:
    """Check that the files hold about as many numbers as the model of their head needs. Raises UnsupportedBase.

    Missing weights would be allocated before they are reported by name, and might exceed the memory.
    """
    wanted = sum(each.numel() for each in model.parameters())
    if wanted > 2 * held:  # a head that is tied to the embedding may be stored once
        head = "metadata" if files.gguf else "a config.json"
        message = f"has {head} of {wanted:,} numbers, but weights of {held:,}; one of them is another base's"
        raise UnsupportedBase(files.subject, message)


def numbers_in(tensors: Mapping[str, Stored]) -> int:
    """Return how many numbers tensors hold."""
    return sum(prod(each.get_shape()) * _NUMBERS_IN.get(each.get_dtype(), 1) for each in tensors.values())


def read_config(files: BaseFiles) -> tuple[PreTrainedConfig, Quantisation | None]:
    """Return the configuration of the dequantised model, and how the files quantise it.

    Raises CorruptFile or UnsupportedBase.
    """
    if files.gguf is not None:
        told = _load_config(files)
        _check_sizes(files, "metadata", told.to_dict())
        path = files.folder / files.gguf
        config = _config_by_library(files, lambda: complete(told, path, files.subject))
        _check_sizes(files, "metadata", config.to_dict())
        return config, None
    raw = _read_object(files, "config.json")
    _check_sizes(files, "a config.json", raw)
    if raw.get("transformers_weights"):  # transformers would read that instead of everything checked here
        message = "names a file of weights in its config.json; remove transformers_weights"
        raise UnsupportedBase(files.subject, message)
    if "quantization_config" not in raw and (files.folder / MODELOPT_FILE).exists():
        raw["quantization_config"] = _read_object(files, MODELOPT_FILE)
    check_theta(raw, files.subject)
    quantisation = read_quantisation(raw, files.subject)
    known = _SAME_ARCHITECTURE.get(str(raw.get("model_type", "")))
    config = _config_for(files, known, raw) if known else _load_config(files)
    config = _config_by_library(files, lambda: with_attention_factors(config))
    for each in (config, config.get_text_config()):
        if hasattr(each, "quantization_config"):
            del each.quantization_config
    tell_routes_once(config.get_text_config(), files.subject)
    # Which attention and experts code its makers used, which may not be installed here: it is not needed.
    config._attn_implementation = config._experts_implementation = None
    return config, quantisation


def tell_routes_once(config: Any, subject: str) -> None:
    """Replace a list with the number of experts per token of each layer (Hunyuan) by one number, if all are equal."""
    counts = getattr(config, "num_experts_per_tok", None)
    if not isinstance(counts, list):
        return
    if len(counts) < config.num_hidden_layers or any(each != counts[0] for each in counts):
        raise UnsupportedBase(subject, f"has several numbers of experts per token, {counts}, which is not supported")
    config.num_experts_per_tok = counts[0]


def _check_sizes(files: BaseFiles, what: str, config: dict[str, Any]) -> None:
    text = config.get("text_config")
    family = (text if isinstance(text, dict) else config).get("model_type")
    known: Any = CONFIG_MAPPING
    own_heads = isinstance(family, str) and family in known and bool(getattr(known[family], "head_dim", None))
    if odd := odd_size(config, own_heads=own_heads):
        raise UnsupportedBase(files.subject, f"has {what} where {odd}")


def _read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError; ValueError if it is invalid, too large or nested too deeply."""
    with path.open("rb") as file:
        text = file.read(_MOST_JSON_BYTES + 1)
    if len(text) > _MOST_JSON_BYTES:
        raise ValueError(f"{path.name} is larger than {_MOST_JSON_BYTES} bytes")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None


def _read_object(files: BaseFiles, name: str) -> dict[str, Any]:
    try:
        found = _read_json(files.folder / name)
    except FileNotFoundError:
        raise CorruptFile(files.subject, f"has no {name}; name the folder that holds the base's files") from None
    except (OSError, ValueError):
        raise CorruptFile(files.subject, f"has a {name} that is not JSON") from None
    if not isinstance(found, dict):
        raise CorruptFile(files.subject, f"has a {name} that is not a JSON object")
    return found


def _load_config(files: BaseFiles) -> PreTrainedConfig:
    def load() -> PreTrainedConfig:
        if files.gguf is not None:
            check_read(files.folder / files.gguf, files.subject)
        config: PreTrainedConfig = AutoConfig.from_pretrained(files.folder, **_as_they_lie(files))
        return config

    return _config_by_library(files, load)


def _config_for(files: BaseFiles, model_type: str, raw: dict[str, Any]) -> PreTrainedConfig:
    fields = {key: value for key, value in raw.items() if key != "model_type"}
    return _config_by_library(files, lambda: AutoConfig.for_model(model_type, **fields))


def _config_by_library(files: BaseFiles, read: Callable[[], PreTrainedConfig]) -> PreTrainedConfig:
    try:
        return read()
    except LIBRARY_ERRORS as error:
        raise UnsupportedBase(files.subject, f"has an unsupported configuration: {first_line(error)}") from None


def _as_they_lie(files: BaseFiles) -> dict[str, Any]:
    """Options for transformers: fetch nothing, and run none of the files' code."""
    options = {"gguf_file": files.gguf} if files.gguf else {}
    return {"local_files_only": True, "trust_remote_code": False, **options}


def read_tokenizer(files: BaseFiles) -> PreTrainedTokenizerBase:
    """Read the base's tokenizer, without running any code of its own. Raises UnsupportedBase.

    A tokenizer.json is taken as it is, also beside a GGUF file. Some classes that a tokenizer_config.json names take
    only the vocabulary from it and split texts in their own way: GPT2Tokenizer leaves spaces with SmolLM2's digits,
    and LlamaTokenizer puts a space before Yi's texts.
    """
    whole = (files.folder / _TOKENIZER_FILE).exists()
    reader: Any = TokenizersBackend if whole else AutoTokenizer
    try:
        tokenizer: PreTrainedTokenizerBase = reader.from_pretrained(files.folder, **_as_they_lie(files))
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise UnsupportedBase(files.subject, _why_no_tokenizer(files, error, whole=whole)) from None
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):  # a class' own, without any file
        why = "has no vocabulary that its tokenizer can read"
        raise UnsupportedBase(files.subject, f"{why}; put a {_TOKENIZER_FILE} beside its weights")
    if files.gguf is not None and not whole:
        split_as_told(tokenizer, files.folder / files.gguf, files.subject)
    elif not tokenizer.chat_template and (files.folder / _PROCESSORS_TEMPLATE).exists():
        tokenizer.chat_template = _read_object(files, _PROCESSORS_TEMPLATE).get("chat_template")
    _begin_as_mistral(tokenizer)
    if whole:
        _begin_as_llama(tokenizer, files)
    take_text(tokenizer)
    return tokenizer


def _begin_as_mistral(tokenizer: Any) -> None:
    """Have texts begin as mistral-common, which transformers needs for that, begins them, by Mistral's own file."""
    if Path(str(getattr(tokenizer, "vocab_file", ""))).name == "tekken.json":
        tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
        tokenizer.add_bos_token = True


def _begin_as_llama(tokenizer: Any, files: BaseFiles) -> None:
    """Have texts begin with BOS where only a setting of Llama's classes says so, which transformers 5 ignores."""
    told = _tokenizer_settings(files)
    adds = told.get("add_bos_token") is True and told.get("tokenizer_class") in _LLAMAS
    if adds and tokenizer.bos_token and not tokenizer.backend_tokenizer.num_special_tokens_to_add(False):
        tokenizer.add_bos_token = True


def _why_no_tokenizer(files: BaseFiles, error: Exception, *, whole: bool) -> str:
    if whole or files.gguf is not None:
        return f"has no loadable tokenizer: {first_line(error)}"
    remedy = f"put a {_TOKENIZER_FILE} beside its weights"
    if "auto_map" in _tokenizer_settings(files):
        return f"has a tokenizer that is custom code, which is not run here; {remedy}"
    return f"has no {_TOKENIZER_FILE}, and its other files make no tokenizer here ({first_line(error)}); {remedy}"


def _tokenizer_settings(files: BaseFiles) -> dict[str, Any]:
    exists = (files.folder / _TOKENIZER_SETTINGS).exists()
    return _read_object(files, _TOKENIZER_SETTINGS) if exists else {}


def first_line(error: BaseException) -> str:
    """Return an error's type and its message's beginning, with the line that follows headings ending in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    headings = next((at for at, line in enumerate(lines) if not line.endswith(":")), 0)
    text = " ".join(lines[: headings + 1])
    return f"{type(error).__name__}: {text[:300]}" if lines else type(error).__name__

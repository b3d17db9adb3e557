"""PEFT's adapter_config.json: which fields determine an adapter's numbers, and which settings are not served.

Every field is either read here, known to be irrelevant to inference, or must have a neutral value. So an unknown PEFT
feature is refused by name, never served wrongly. Follows peft 0.21 (peft/tuners/lora/config.py).
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from mint_contracts.errors import CorruptFile, UnsupportedAdapter
from mint_contracts.targets import endings
from mint_engine.adapters.header import POINTER

PREFIX = "base_model.model."  # of PEFT's tensor names
MAX_CONFIG_BYTES = 1 << 20
MAX_PATTERNS = 4096

_READ = {"peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern",
         "target_modules", "target_parameters", "layers_to_transform", "init_lora_weights", "bias",
         "peft_version"}  # fmt: skip
# How it was trained: nothing that a forward pass uses. The tensors themselves show which modules are adapted.
_SILENT = {"task_type", "inference_mode", "revision", "auto_mapping", "lora_dropout",
           "exclude_modules", "layers_pattern", "megatron_core", "loftq_config", "eva_config", "corda_config",
           "lora_ga_config", "qalora_group_size", "runtime_config"}  # fmt: skip
# Initialisations that leave the base model's weights unchanged; others (pissa, olora, corda, loftq, ...) change them.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")

# PEFT's patterns are regular expressions. A tenant's patterns are run only if they cannot blow up: no quantified
# group, at most two quantifiers, and few combinations of alternatives. The whole process waits while one is matched.
_SAFE_PATTERN = re.compile(r"(?!.*\(\?[^:])(?!.*\)[*+?{])[A-Za-z0-9_^$.|():?*+\\\[\]-]{1,300}")
_QUANTIFIER = re.compile(r"(?<!\()[*+?]")
_GROUPING = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|([(|)])")  # escaped characters and classes do not group
_MOST_WAYS = 256
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?")
_QUANTIFIED = 32  # cost relative to a plain name: two quantifiers on a path of 31 characters take 9 us, a name 0.3


@dataclass(frozen=True)
class LoraConfig:
    """What determines an adapter's numbers. `targets` is None if PEFT is given a regular expression instead.

    `parameters` are stacked tensors that are targeted by name (see `fused`). `effort` is the cost of matching one
    linear with all patterns, in units of a plain name's.
    """

    base_name: str
    rank: int
    alpha: float
    rslora: bool
    targets: frozenset[str] | None
    parameters: tuple[str, ...]
    layers: frozenset[int] | None
    version: tuple[int, ...]  # of the peft that wrote it; () if it does not say
    canonical: bytes  # the same JSON in one fixed form, for the digest
    effort: int
    _named: frozenset[str]  # `parameters`
    _ranks: tuple[tuple[re.Pattern[str], int], ...]
    _alphas: tuple[tuple[re.Pattern[str], float], ...]

    @property
    def largest_rank(self) -> int:
        """The largest rank that any module can have."""
        return max([self.rank, *(rank for _, rank in self._ranks)])

    def rank_of(self, path: str) -> int:
        """Return the rank of the module at `path`: that of the first matching rank_pattern, or r."""
        return next((rank for pattern, rank in self._ranks if pattern.match(path)), self.rank)

    def alpha_of(self, path: str) -> float:
        """Return the alpha of the module at `path`: that of the first matching alpha_pattern, or lora_alpha."""
        return next((value for pattern, value in self._alphas if pattern.match(path)), self.alpha)

    def numbers_of(self, path: str) -> tuple[int, float]:
        """Return the rank and scaling of the module at `path`, as PEFT computes them.

        The scaling is alpha/r, or alpha/sqrt(r) with rsLoRA.
        """
        alpha, rank = self.alpha_of(path), self.rank_of(path)
        return rank, alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def names(self, path: str) -> bool:
        """Return whether the tensor at `path` is one of `parameters`."""
        return not self._named.isdisjoint(endings(path))


def parse(text: bytes, subject: str) -> LoraConfig:
    """Parse adapter_config.json.

    Raises CorruptFile if it is invalid, and UnsupportedAdapter naming a field that is not served.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise CorruptFile(subject, f"has an adapter_config.json above {MAX_CONFIG_BYTES} bytes")
    if text.startswith(POINTER):
        raise CorruptFile(subject, "has a Git LFS pointer in place of its config; fetch it with git lfs pull")
    try:
        raw = json.loads(text)
        canonical = _canonical(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(subject, f"has an adapter_config.json that is not JSON ({type(error).__name__})") from None
    if not isinstance(raw, dict):
        raise CorruptFile(subject, "has an adapter_config.json that is not a JSON object")
    _refuse_unserved(raw, subject)
    name, modules = raw.get("base_model_name_or_path"), raw.get("target_modules")
    parameters = _names(raw.get("target_parameters") or [], "target_parameters", subject)
    ranks, alphas = (_patterns(raw, field, subject) for field in ("rank_pattern", "alpha_pattern"))
    return LoraConfig(
        base_name=name if isinstance(name, str) else "",
        rank=_rank(raw.get("r"), "r", subject),
        alpha=_number(raw.get("lora_alpha"), "lora_alpha", subject),
        rslora=_flag(raw.get("use_rslora", False), "use_rslora", subject),
        targets=_targets(modules, subject) if modules or not parameters else frozenset(),
        parameters=parameters,
        layers=_layers(raw.get("layers_to_transform"), subject),
        version=_version(raw.get("peft_version")),
        canonical=canonical,
        effort=sum(_effort(key) for _, key, _ in (*ranks, *alphas)),
        _named=frozenset(parameters),
        _ranks=tuple((p, _rank(v, f"rank_pattern[{k!r}]", subject)) for p, k, v in ranks),
        _alphas=tuple((p, _number(v, f"alpha_pattern[{k!r}]", subject)) for p, k, v in alphas),
    )


def _canonical(raw: object) -> bytes:
    """Return JSON with the fields sorted by name, but values unchanged: the order of patterns matters."""
    fields = {name: raw[name] for name in sorted(raw)} if isinstance(raw, dict) else raw
    return json.dumps(fields, separators=(",", ":")).encode()


def _refuse_unserved(raw: dict[str, Any], subject: str) -> None:
    if raw.get("peft_type") != "LORA":
        raise UnsupportedAdapter(subject, f"has peft_type {_show(raw.get('peft_type'))}; only LORA is supported")
    if raw.get("bias", "none") != "none":
        raise UnsupportedAdapter(subject, f"has bias {_show(raw['bias'])}; only 'none' is supported")
    init = raw.get("init_lora_weights")
    if not any(init is each or (isinstance(init, str) and init == each) for each in _PLAIN_INITS):
        hint = "it changes the base model's weights; convert it with path_initial_model_for_weight_conversion"
        raise UnsupportedAdapter(subject, f"has init_lora_weights {_show(init)}: {hint}")
    for field in sorted(raw.keys() - _READ - _SILENT):
        if not _neutral(raw[field]):
            raise UnsupportedAdapter(subject, f"sets {field[:100]} to {_show(raw[field])}, which is not supported")


def _neutral(value: object) -> bool:
    return value is None or value is False or (isinstance(value, list | dict | str) and not value)


def _show(value: object) -> str:
    return repr(value)[:100]


def _unexpected(field: str, value: object, what: str, subject: str) -> CorruptFile:
    message = f"has {field[:200]} {_show(value)} in adapter_config.json where {what} expected"
    return CorruptFile(subject, message)


def _rank(value: object, field: str, subject: str) -> int:
    if type(value) is not int or value < 1:
        raise _unexpected(field, value, "a rank is", subject)
    return value


def _number(value: object, field: str, subject: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _unexpected(field, value, "a number is", subject)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise CorruptFile(subject, f"has {field[:200]} {_show(value)} in adapter_config.json, which is not finite")
    return number


def _version(value: object) -> tuple[int, ...]:
    found = _VERSION.match(value) if isinstance(value, str) else None
    return tuple(int(number or 0) for number in found.groups()) if found else ()


def _flag(value: object, field: str, subject: str) -> bool:
    if not isinstance(value, bool):
        raise _unexpected(field, value, "true or false is", subject)
    return value


def _targets(value: object, subject: str) -> frozenset[str] | None:
    if isinstance(value, str) and value:
        return None
    if not value:
        raise _unexpected("target_modules", value, "names are", subject)
    return frozenset(_names(value, "target_modules", subject))


def _names(value: object, field: str, subject: str) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(each, str) and each for each in value):
        return tuple(value)
    raise _unexpected(field, value, "names are", subject)


def _layers(value: object, subject: str) -> frozenset[int] | None:
    if value is None or value == []:
        return None
    indices = value if isinstance(value, list) else [value]
    if not all(type(each) is int for each in indices):
        raise CorruptFile(subject, f"has layers_to_transform {_show(value)} where layer numbers are expected")
    return frozenset(indices)


def _patterns(raw: dict[str, Any], field: str, subject: str) -> list[tuple[re.Pattern[str], str, Any]]:
    """Return (compiled, as written, value) for each entry; matched as in peft's get_pattern_key."""
    entries = raw.get(field) or {}
    if not isinstance(entries, dict) or len(entries) > MAX_PATTERNS:
        raise CorruptFile(subject, f"has a {field} that is not an object of at most {MAX_PATTERNS} entries")
    found = []
    for key, value in entries.items():
        if not _SAFE_PATTERN.fullmatch(key) or len(_QUANTIFIER.findall(key)) > 2 or _ways(key) > _MOST_WAYS:
            raise UnsupportedAdapter(
                subject, f"has the {field} {_show(key)}; only names and simple patterns are supported"
            )
        try:
            found.append((re.compile(rf"(.*\.)?({key})$"), key, value))
        except re.error:
            raise CorruptFile(
                subject, f"has the {field} {_show(key)}, which is not a valid regular expression"
            ) from None
    return found


def _effort(pattern: str) -> int:
    return _ways(pattern) * (_QUANTIFIED if _QUANTIFIER.search(pattern) else 1)


def _ways(pattern: str) -> int:
    """Return an upper bound of the ways to choose a pattern's alternatives, as if all groups followed one another."""
    ways, begun = 1, [1]
    for sign in _GROUPING.findall(pattern):
        if sign == "(":
            begun.append(1)
        elif sign == "|":
            begun[-1] += 1
        elif sign and len(begun) > 1:
            ways *= begun.pop()
    return ways * math.prod(begun)

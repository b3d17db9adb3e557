"""Checks whether an adapter fits a base: pure functions of its config, its file's header and the base's shapes."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import (
    CorruptFile,
    RankTooLarge,
    ShapeMismatch,
    UnknownTargetModules,
    UnsupportedAdapter,
    WrongBase,
)
from mint_contracts.listing import and_more
from mint_contracts.targets import endings
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.fused import (
    check_stack,
    find_turned,
    pattern_name,
    targeted_parameters,
    tensor_paths,
    weight_of,
)
from mint_engine.adapters.header import DTYPE_BYTES, Tensors, TensorSpec
from mint_engine.adapters.names import names_of, renamed, targets_of, text_model
from mint_engine.adapters.packed import Header, lay_out
from mint_engine.adapters.peft_config import PREFIX, LoraConfig

_HALVES = {".lora_A.weight": "A", ".lora_B.weight": "B"}
_NUMBERS = re.compile(r"\.[^.]+\.(\d+)(?=\.)")  # the layer's number is the first; before peft 0.21 it was the last
_EXPERT = re.compile(r"(.+\.experts)\.(0|[1-9][0-9]{0,5})\.([^.]+)")
_NUMBERED = re.compile(r"(?:(.+)\.)?(0|[1-9][0-9]{0,5})\.([^.]+)")  # a target that may mean one expert's linear

PLAIN = -1  # in place of an expert's number: the module is not stacked
MAX_SCALING = 3e38  # what float32 holds
_UNKNOWN_TENSORS = 1 << 15
PASSED_OVER_BYTES = 1 << 30  # the least limit, or the largest adapter's size: reading them takes some seconds
MOST_EFFORT = 1 << 24  # over all linears: about five seconds of a core


@dataclass(frozen=True)
class Fit:
    """What a base accepts: modules by path, the largest rank, and the base's names in adapters' configs (empty: any).

    `unused` are linears that text never reaches (see `mint_engine.adapters.unused`).
    """

    modules: Mapping[str, Module]
    max_rank: int
    base_names: tuple[str, ...] = ()
    unused: frozenset[str] = frozenset()

    @property
    def most_tensors(self) -> int:
        """The most tensors to look at: all that an adapter may have, and some that are refused by their names."""
        linears = sum(max(1, module.experts) for module in self.modules.values())
        return 2 * (linears + len(self.unused)) + _UNKNOWN_TENSORS


@dataclass(frozen=True)
class Part:
    """One module's tensors in the file, A [r, in] and B [out, r], and the scaling of their product.

    A plain module has one pair. Of stacked experts, each adapted one has a pair, keyed by its number, all with the
    same rank and scaling; the others add nothing. Or all experts share one pair, which may hold other modules too
    (`fused`, see `mint_engine.adapters.fused`).
    """

    path: str
    rank: int
    pairs: Mapping[int, tuple[TensorSpec, TensorSpec]]
    scaling: float
    fused: bool = False
    turned: bool = False


def check_config(config: LoraConfig, fit: Fit, subject: str) -> None:
    """Check what the config alone shows. Raises WrongBase, RankTooLarge or UnknownTargetModules.

    As in PEFT, targets may name nothing here if others do: one list is used for many bases, and tensors are checked.
    """
    check_admitted(config, fit, subject)
    unused, targets = {name for path in fit.unused for name in endings(path)}, config.targets or ()
    without = [name for name in _unknown_targets(targets, fit) if name not in unused]
    known = {name for path, module in fit.modules.items() for name in endings(module.part_of or weight_of(path))}
    unknown = [name for name in config.parameters if name not in known]
    if len(without) == len(targets):
        unknown += without
    if unknown:
        raise UnknownTargetModules(subject, _unknown(unknown, fit))


def check_admitted(config: LoraConfig, fit: Fit, subject: str) -> None:
    """Check what may differ between engines with the same modules. Raises WrongBase or RankTooLarge."""
    if fit.base_names and config.base_name not in fit.base_names:
        accepted = ", ".join(fit.base_names)
        raise WrongBase(subject, f"was trained on {config.base_name[:200]!r}; this base model takes {accepted}")
    if config.largest_rank > fit.max_rank:
        raise RankTooLarge(
            subject, f"has rank {config.largest_rank}; the base model takes up to {fit.max_rank} (adapters.maxRank)"
        )


def check_tensors(config: LoraConfig, table: Tensors, fit: Fit, subject: str) -> tuple[Part, ...]:
    """Return the parts of the adapter, in the order of the base's modules.

    Raises UnknownTargetModules, UnsupportedAdapter, CorruptFile, RankTooLarge or ShapeMismatch.
    """
    parameters = targeted_parameters(config, fit.modules)
    halves = _halves(table, fit, tensor_paths(parameters), subject)
    unknown = sorted(path for path, _ in halves if path not in fit.modules and path not in parameters)
    if unknown:
        raise UnknownTargetModules(subject, _unknown(unknown, fit))
    by_path: dict[str, dict[int, dict[str, TensorSpec]]] = {}
    names: list[tuple[str, str]] = []
    for (path, expert), found in sorted(halves.items()):
        if len(found) != 2:
            missing = f"lora_{next(iter(found))} of {_named(path, expert)}"
            raise CorruptFile(subject, f"has {missing} without its other half")
        theirs = found["A"].name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        if path in parameters:
            theirs = renamed(path, text_model(theirs))
        names.append((theirs, _named(path, expert)))
        by_path.setdefault(path, {})[expert] = found
    _check_patterns(config, names, subject)
    stacks = {path: by_path[path][PLAIN] for path in parameters if path in by_path}
    shapes = {path: (found["A"].shape, found["B"].shape) for path, found in stacks.items()}
    turned = find_turned(config, parameters, shapes, subject)
    parts = []
    for path, module in fit.modules.items():
        if (name := module.part_of) in stacks:
            if by_path.get(path, {}).keys() - {PLAIN}:
                raise UnsupportedAdapter(subject, f"has tensors of {path} and of {name}, which includes it")
            check_stack(config, parameters[name], fit.max_rank, shapes[name], subject, turned=name in turned)
            rank, scaling = config.numbers_of(name)
            _check_scaling(scaling, name, subject)
            pairs = {0: (stacks[name]["A"], stacks[name]["B"])}
            parts.append(Part(path, rank, pairs, scaling, fused=True, turned=name in turned))
        elif path in by_path:
            parts.append(_part(config, fit, module, by_path[path], subject))
    if not parts:
        raise CorruptFile(subject, "has no LoRA tensors")
    return tuple(parts)


def check_skipped(count: int, fit: Fit, subject: str) -> None:
    """Raise UnsupportedAdapter if tensors of `count` bytes that are skipped are too many to read."""
    largest = lay_out(fit.modules, dict.fromkeys(fit.modules, fit.max_rank)).elements * DTYPE_BYTES["F32"]
    if count > (most := max(PASSED_OVER_BYTES, largest)):
        raise UnsupportedAdapter(
            subject,
            f"has {in_units(count)} of tensors that text never reaches, and at most {in_units(most)} are passed "
            "over; save it without them",
        )


def check_packed(header: Header, fit: Fit, subject: str) -> None:
    """Check that each part of a packed adapter fits this base; `parse` has checked that paths and places are valid.

    Raises UnknownTargetModules, RankTooLarge, ShapeMismatch or CorruptFile.
    """
    unknown = [place.path for place in header.layout.places if place.path not in fit.modules]
    if unknown:
        raise UnknownTargetModules(subject, _unknown(unknown, fit))
    for place, scaling in zip(header.layout.places, header.scalings, strict=True):
        module = fit.modules[place.path]
        if place.rank > fit.max_rank:
            raise _too_large(place.rank, place.path, fit.max_rank, subject)
        want = (module.experts, module.in_features, module.out_features)
        if (place.experts, place.in_features, place.out_features) != want:
            raise ShapeMismatch(
                subject,
                f"has {_linear(place.experts, place.in_features, place.out_features)} at {place.path} where the base "
                f"model has {_linear(*want)}",
            )
        _check_scaling(scaling, place.path, subject)


def check_numbers(header: Header, config: LoraConfig, fit: Fit, subject: str) -> None:
    """Check that a packed adapter's ranks and scalings are those that its own config gives. Raises CorruptFile.

    A packed adapter does not record which of a module's experts had tensors. So all experts that the config names
    individually must fit, and at least one of those that it names together.
    """
    _check_effort(config, sum(max(place.experts, 1) for place in header.layout.places), subject)
    parameters = targeted_parameters(config, fit.modules)
    for place, scaling in zip(header.layout.places, header.scalings, strict=True):
        whole = fit.modules[place.path].part_of
        names = [_named(place.path, expert) for expert in range(place.experts) or (PLAIN,)]
        if whole in parameters:
            names = [whole]
        elif not (targeted := [name for name in names if not _untargeted(config, name)]):
            _check_targeted(config, names[0], subject)
        else:
            names = targeted
        unfit = [name for name in names if (place.rank, scaling) != _numbers(config, name)]
        alone = [name for name in unfit if _names_alone(config, name, place.path)]
        if alone or len(unfit) == len(names):
            raise CorruptFile(
                subject,
                f"has a different rank or scaling at {[*alone, *unfit][0]} than its config gives; pack it again",
            )


def _numbers(config: LoraConfig, path: str) -> tuple[int, float]:
    """Return the rank and scaling of the linear at `path`."""
    return config.numbers_of(pattern_name(config, path))


def _names_alone(config: LoraConfig, name: str, path: str) -> bool:
    """Return whether the config names this expert's linear, not that of all experts; a pattern may do either."""
    if pattern_name(config, name) != name:
        return not config.names(weight_of(path.rpartition(".")[2]))
    return config.targets is not None and bool(config.targets & set(endings(name)) - {path.rpartition(".")[2]})


def _halves(
    table: Tensors, fit: Fit, fused: Mapping[str, str], subject: str
) -> dict[tuple[str, int], dict[str, TensorSpec]]:
    """Return the tensors by module path and expert (`PLAIN` if there is none), then by "A" and "B".

    Tensors named in `fused` go by the path of their parameter; all may have other names than in the base (`names`).
    """
    own = next((text_model(path) for path in fit.modules), "")
    halves: dict[tuple[str, int], dict[str, TensorSpec]] = {}
    for name, spec in table.items():
        suffix = next((each for each in _HALVES if name.endswith(each)), None)
        if suffix is None or not name.startswith(PREFIX):
            raise UnsupportedAdapter(
                subject,
                f"has the tensor {name[:200]!r}; only {PREFIX}<module>.lora_A.weight and lora_B are supported",
            )
        path = renamed(name.removeprefix(PREFIX).removesuffix(suffix), own)
        key = (fused[path], PLAIN) if path in fused else _stacked(path, fit)
        found = halves.setdefault(key, {})
        if _HALVES[suffix] in found:
            raise CorruptFile(subject, f"holds lora_{_HALVES[suffix]} of {path[:200]} twice, by two names")
        found[_HALVES[suffix]] = spec
    return halves


def _check_patterns(config: LoraConfig, names: Sequence[tuple[str, str]], subject: str) -> None:
    """Raise UnsupportedAdapter if patterns are too many, or tell an adapter's name of a linear from the base's."""
    renames = [(theirs, path) for theirs, path in names if theirs != path]
    _check_effort(config, len(names), subject, names=3 if renames else 1)
    for theirs, path in renames:
        if _numbers(config, theirs) != _numbers(config, path):
            raise UnsupportedAdapter(
                subject,
                f"gives {theirs[:200]} a rank or alpha by a pattern that does not match {path[:200]}, as this base "
                "names it; change the pattern to match both",
            )


def _stacked(name: str, fit: Fit) -> tuple[str, int]:
    """Return the base's path and the expert (or `PLAIN`) that PEFT's name of a module means."""
    expert = _EXPERT.fullmatch(name) if name not in fit.modules else None
    if expert is not None:
        path = f"{expert[1]}.{expert[3]}"
        if path in fit.modules and int(expert[2]) < fit.modules[path].experts:
            return path, int(expert[2])
    return name, PLAIN


def _named(path: str, expert: int) -> str:
    """Return PEFT's name of a module, which has the expert's number before its last part."""
    return path if expert == PLAIN else expert_path(path, expert)


def expert_path(path: str, expert: int) -> str:
    """Return PEFT's name of one expert of a stacked module, such as "...experts.5.up_proj"."""
    head, _, leaf = path.rpartition(".experts.")
    return f"{head}.experts.{expert}.{leaf}"


def _part(
    config: LoraConfig, fit: Fit, module: Module, found: dict[int, dict[str, TensorSpec]], subject: str
) -> Part:
    if module.experts and PLAIN in found:
        raise UnsupportedAdapter(subject, f"has tensors of {module.path} without an expert number")
    kinds = set()
    for expert in found:
        name = _named(module.path, expert)
        _check_targeted(config, name, subject)
        rank, scaling = _numbers(config, name)
        _check_shapes(found[expert], name, (module.in_features, module.out_features), rank, fit.max_rank, subject)
        kinds.add((rank, scaling))
    if len(kinds) > 1:
        raise UnsupportedAdapter(subject, f"has different ranks or scalings for the experts of {module.path}")
    rank, scaling = kinds.pop()
    _check_scaling(scaling, module.path, subject)
    pairs = {max(expert, 0): (each["A"], each["B"]) for expert, each in found.items()}
    return Part(module.path, rank, pairs, scaling)


def _check_effort(config: LoraConfig, linears: int, subject: str, names: int = 1) -> None:
    """Raise UnsupportedAdapter if matching `names` of each of `linears` with all patterns would take too long."""
    if config.effort * linears * names > MOST_EFFORT:
        raise UnsupportedAdapter(
            subject, f"has too many patterns in rank_pattern and alpha_pattern for {linears} linears; give fewer"
        )


def _check_scaling(scaling: float, path: str, subject: str) -> None:
    if not abs(scaling) <= MAX_SCALING:
        raise CorruptFile(subject, f"has a scaling of {scaling} at {path}, which is out of range")


def _check_targeted(config: LoraConfig, path: str, subject: str) -> None:
    """Raise CorruptFile if the config does not target the module: PEFT would ignore its tensors."""
    if field := _untargeted(config, path):
        raise CorruptFile(subject, f"has tensors of {path}, which its {field} does not name")


def _untargeted(config: LoraConfig, path: str) -> str:
    """Return the config's field that excludes the module at `path`, or "" if the config targets it."""
    if pattern_name(config, path) != path:  # targeted by its weight's name, whatever the layer
        return ""
    if not _is_targeted(config, path):
        return "target_modules"
    if config.layers is None or not frozenset(names_of(path)).isdisjoint(config.targets or ()):
        return ""  # or named in full, whatever the layer
    return "layers_to_transform" if config.layers.isdisjoint(map(int, _NUMBERS.findall(path))) else ""


def _is_targeted(config: LoraConfig, path: str) -> bool:
    """Return whether target_modules name the linear at `path`, most often as the base does; expressions always do."""
    targets = config.targets
    return targets is None or not (targets.isdisjoint(endings(path)) and targets.isdisjoint(targets_of(path)))


def _check_shapes(
    found: dict[str, TensorSpec], name: str, linear: tuple[int, int], rank: int, max_rank: int, subject: str
) -> None:
    if len(found["A"].shape) == 2 and found["A"].shape[0] > max_rank:
        raise _too_large(found["A"].shape[0], name, max_rank, subject)
    for half, want in (("A", (rank, linear[0])), ("B", (linear[1], rank))):
        if (shape := found[half].shape) != want:
            raise ShapeMismatch(
                subject, f"has lora_{half} {list(shape)} at {name} where the base model and rank need {list(want)}"
            )


def _too_large(rank: int, path: str, max_rank: int, subject: str) -> RankTooLarge:
    return RankTooLarge(subject, f"has rank {rank} at {path}; the base model takes up to {max_rank}")


def _linear(experts: int, in_features: int, out_features: int) -> str:
    return f"{in_features} to {out_features} features" + (f" of {experts} experts" if experts else "")


def _unknown_targets(names: Iterable[str], fit: Fit) -> list[str]:
    """Return the names that match no module of the base, and no expert's linear."""
    experts: dict[str, int] = {}  # number of experts by name
    for path, module in fit.modules.items():
        for name in targets_of(path):
            experts[name] = max(module.experts, experts.get(name, 0))

    def is_known(name: str) -> bool:
        numbered = _NUMBERED.fullmatch(name) if name not in experts else None
        if numbered is None:
            return name in experts
        return int(numbered[2]) < experts.get(f"{numbered[1]}.{numbered[3]}" if numbered[1] else numbered[3], 0)

    return [name for name in names if not is_known(name)]


def _unknown(names: list[str], fit: Fit) -> str:
    parts = [module.path.split(".") for module in fit.modules.values()]
    alike = {name.rpartition(".")[2] for name in names}  # the base may have these elsewhere: show more of the path
    offered = sorted({".".join(path[-2:] if path[-1] in alike else path[-1:]) for path in parts})
    shown = ", ".join(name[:100] for name in sorted(names)[:3]) + and_more(names, 3)
    return f"targets {shown}; the base model offers {', '.join(offered)}"

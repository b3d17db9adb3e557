"""Which modules a `targetModules` entry means: as in PEFT, those whose path ends with the entry at a dot.

So `up_proj` means every module of that name, `shared_experts.up_proj` only those of shared experts, and `mlp.up_proj`
only those of layers without routed experts, as the paths of routed experts have the expert's number before the name.
Follows peft 0.21 (tuners/tuners_utils.py, check_target_module_exists).
"""

from collections.abc import Iterable


def is_within(path: str, target: str) -> bool:
    """Whether the target names the module at that path; for two targets, whether the first is narrower or equal."""
    return f".{path}".endswith(f".{target}")


def endings(path: str) -> list[str]:
    """Return all targets that name the module at that path."""
    parts = path.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def within_layer(path: str) -> str:
    """Return a module's path after its last number, usually the layer's: the same for all layers."""
    parts = path.split(".")
    return ".".join(parts[max((at + 1 for at, part in enumerate(parts) if part.isdecimal()), default=0) :])


def is_targeted(path: str, targets: Iterable[str]) -> bool:
    """Whether any of the targets names the module at that path."""
    return any(is_within(path, target) for target in targets)


def beyond(targets: Iterable[str], offered: Iterable[str]) -> list[str]:
    """Return, sorted, the targets that may name modules which no offered target names."""
    offered = tuple(offered)
    return sorted({target for target in targets if not is_targeted(target, offered)})

"""Which modules a name of `targetModules` means: as PEFT has it, those whose path ends with the name at a dot.

So `up_proj` means every module of that name, `shared_experts.up_proj` those of shared experts alone, and
`mlp.up_proj` those of layers without routed experts, whose paths have the expert's number before the last part.
Follows peft 0.21 (tuners/tuners_utils.py, check_target_module_exists).
"""

from collections.abc import Iterable


def is_within(path: str, target: str) -> bool:
    """Whether the module at that path is one that the target names; of two targets, whether the first is narrower."""
    return f".{path}".endswith(f".{target}")


def endings(path: str) -> list[str]:
    """All targets that name the module at that path."""
    parts = path.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def within_layer(path: str) -> str:
    """What is left of a module's path once the number of its layer is taken off: the same for all layers."""
    parts = path.split(".")
    return ".".join(parts[max((at + 1 for at, part in enumerate(parts) if part.isdecimal()), default=0) :])


def is_targeted(path: str, targets: Iterable[str]) -> bool:
    """Whether any of the targets names the module at that path."""
    return any(is_within(path, target) for target in targets)


def beyond(targets: Iterable[str], offered: Iterable[str]) -> list[str]:
    """Those of the targets that may name modules which none of the offered ones does, in order."""
    offered = tuple(offered)
    return sorted({target for target in targets if not is_targeted(target, offered)})

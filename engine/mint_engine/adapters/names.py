"""The names that adapters have for a base's linears: those of the transformers, or of the files, that they are for.

Layers of a text model have one prefix if it is alone, another beside vision, and had a third there until transformers
4.52. Experts of Mixtral and MiniMax-M2 are `block_sparse_moe.experts.5.w1` in their files, and were in transformers
until 5; PEFT and vLLM read these, too.
"""

import re

from mint_contracts.targets import endings
from mint_engine.adapters.unused import MODEL, TEXT_MODEL

_TEXT_MODELS = (MODEL, TEXT_MODEL, "language_model.model.")
_OLDER = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_NEWER = {older: leaf for leaf, older in _OLDER.items()}
_OLDER_EXPERT = re.compile(r"(.+)\.block_sparse_moe\.experts\.(\d+)\.(w[123])")
_EXPERT = re.compile(r"(.+)\.mlp\.experts\.(\d+\.)?(gate_proj|down_proj|up_proj)")  # or all of a layer's


def text_model(path: str) -> str:
    """Return the prefix of the text model that has a linear in its layers, or "" if it is none of those known."""
    return next((each for each in _TEXT_MODELS if path.startswith(f"{each}layers.")), "")


def renamed(path: str, prefix: str) -> str:
    """Return an adapter's name of a linear as a base has it that has its layers at `prefix`, "" if at none known."""
    theirs = text_model(path)
    path = prefix + path.removeprefix(theirs) if prefix and theirs else path
    older = _OLDER_EXPERT.fullmatch(path) if ".block_sparse_moe." in path else None  # files have tens of thousands
    return f"{older[1]}.mlp.experts.{older[2]}.{_NEWER[older[3]]}" if older else path


def names_of(path: str) -> list[str]:
    """Return all names of the linear at that path of a base, its own first."""
    own = text_model(path)
    paths = [path, *(each + path.removeprefix(own) for each in _TEXT_MODELS if own and each != own)]
    experts = [expert for each in paths if (expert := _EXPERT.fullmatch(each))]
    return [*paths, *(f"{each[1]}.block_sparse_moe.experts.{each[2] or ''}{_OLDER[each[3]]}" for each in experts)]


def targets_of(path: str) -> list[str]:
    """Return all targets that name the linear at that path of a base, by any of its names."""
    return [target for name in names_of(path) for target in endings(name)]

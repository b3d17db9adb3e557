"""The parts of a vision-language base besides its text model, which are never computed for text requests.

Adapters may still have tensors for them: PEFT matches the ends of module names, so that a plain
`target_modules=["q_proj"]` includes the vision tower's. They change no answer and are skipped, as in vLLM.
"""

from collections.abc import Set

from mint_contracts.errors import UnsupportedAdapter
from mint_engine.adapters.header import Tensors
from mint_engine.adapters.peft_config import PREFIX

MODEL = "model."
TEXT_MODEL = "model.language_model."  # path of a vision-language model's text model since transformers 4.52


def without_unused(table: Tensors, unused: Set[str], subject: str) -> Tensors:
    """Return the table without tensors of the parts that `unused` linears are in.

    Raises UnsupportedAdapter if no others are left.
    """
    parts = {path.removeprefix(MODEL).partition(".")[0] for path in unused}
    kept = {name: spec for name, spec in table.items() if _part_of(name) not in parts}
    if table and not kept:
        names = ", ".join(sorted(parts))
        raise UnsupportedAdapter(
            subject, f"only has tensors of {names}, which text never reaches; train it on the language model too"
        )
    return kept


def _part_of(name: str) -> str:
    """Return the first part of a tensor's path, with the names of transformers either before or since 4.52."""
    return name.removeprefix(PREFIX).removeprefix(MODEL).partition(".")[0]

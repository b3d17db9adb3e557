"""What a base that sees has besides its text model: asked in text alone, it never computes that.

Adapters may have tensors of it all the same. PEFT takes modules by the ends of their names, so that plain
`target_modules=["q_proj"]` means the vision tower's too. They change no answer and are passed over, as vLLM does.
"""

from collections.abc import Set
from dataclasses import replace

from mint_contracts.errors import UnsupportedAdapter
from mint_engine.adapters.header import Header
from mint_engine.adapters.peft_config import PREFIX

MODEL = "model."
TEXT_MODEL = "model.language_model."  # where models that see have the one that reads, since transformers 4.52


def without_unasked(header: Header, unasked: Set[str], subject: str) -> Header:
    """The header without tensors of the parts that these linears are in. Raises UnsupportedAdapter without others."""
    parts = {path.removeprefix(MODEL).partition(".")[0] for path in unasked}
    kept = {name: spec for name, spec in header.tensors.items() if _part_of(name) not in parts}
    if header.tensors and not kept:
        names = ", ".join(sorted(parts))
        raise UnsupportedAdapter(
            subject, f"only has tensors of {names}, which text never reaches; train it on the language model too"
        )
    return replace(header, tensors=kept)


def _part_of(name: str) -> str:
    """The first part of the path that PEFT names a tensor by, as transformers did until 4.52 or does since."""
    return name.removeprefix(PREFIX).removeprefix(MODEL).partition(".")[0]

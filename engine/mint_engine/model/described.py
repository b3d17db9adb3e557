"""Checks that a base's config.json describes its decoder layers: what it does not mention would be left out."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from mint_contracts.errors import UnsupportedBase
from mint_engine.model.modules import layers_prefix
from mint_engine.model.quantised_experts import EXPERT
from mint_engine.model.stored import Stored
from mint_engine.model.weight_loader import Naming

_KINDS = (".weight", ".bias")


def check_described(model: PreTrainedModel, tensors: Mapping[str, Stored], loading: Any, subject: str) -> None:
    """Check that no bias or norm is in the files of which the uncut `model` of config.json has no trace.

    transformers passes such tensors over. One is refused if the model has its module, as a projection with a bias, or
    the module around that, as an attention with a norm. What lies deeper in modules that the model leaves out, as in
    layers that predict further tokens, is passed over; so are biases of zeros, which some quantisers write, and what
    transformers declares harmless for this model, as GPT-NeoX's causal masks. Raises UnsupportedBase.
    """
    naming, prefix, known = Naming(model, loading), layers_prefix(model), model.state_dict().keys()
    modules = {path for path, _ in model.named_modules()}
    harmless = model._keys_to_ignore_on_load_unexpected or ()
    for key, tensor in tensors.items():
        if key in known or not key.endswith(_KINDS) or EXPERT.search(key):
            continue
        own = naming.of(key).whole
        if own in known or not own.startswith(prefix) or own.rsplit(".", 2)[0] not in modules:
            continue
        if any(re.search(pattern, own) for pattern in harmless):
            continue
        if tensor[...].any():
            raise UnsupportedBase(
                subject,
                f"has {key}, of which its config.json says nothing, so that answers would be computed without it; "
                "give the config.json that belongs to these weights",
            )

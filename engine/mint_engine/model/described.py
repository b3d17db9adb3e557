"""Checks that a base's config.json describes its decoder layers: what it does not mention would be left out."""

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

    transformers passes such tensors over. Modules may be meant to be left out completely, like layers that predict
    further tokens; but a tensor within a module that the model has belongs to what that computes. Biases of zeros,
    which some quantisers write, change nothing. Raises UnsupportedBase.
    """
    naming, prefix, known = Naming(model, loading), layers_prefix(model), model.state_dict().keys()
    modules = {path for path, _ in model.named_modules()}
    for key, tensor in tensors.items():
        if key in known or not key.endswith(_KINDS) or EXPERT.search(key):
            continue
        own = naming.of(key).whole
        if own in known or not own.startswith(prefix) or own.rsplit(".", 2)[0] not in modules:
            continue
        if tensor[...].any():
            raise UnsupportedBase(
                subject,
                f"has {key}, of which its config.json says nothing, so that answers would be computed without it; "
                "give the config.json that belongs to these weights",
            )

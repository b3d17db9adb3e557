"""Models and configurations of transformers, to compare plans with."""

import json
from typing import Any

import torch
from transformers import (
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from mint_engine.model.cache_shape import cache_shape
from mint_engine.model.files import tell_routes_once
from mint_gateway.planning.shape import BaseShape
from tests.engine.families import kind_of


def built(fields: dict[str, Any]) -> PreTrainedModel:
    """Build the complete model on the meta device: shapes, but no memory."""
    kind = {"kimi_k2": "deepseek_v3"}.get(fields["model_type"], fields["model_type"])
    config = AutoConfig.for_model(kind, **{name: each for name, each in fields.items() if name != "model_type"})
    tell_routes_once(config, kind)
    with torch.device("meta"):
        model = kind_of(config).from_config(config, dtype=torch.bfloat16)
    assert isinstance(model, PreTrainedModel)
    return model


def config_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the fields of the configuration's config.json."""
    found = json.loads(config.to_json_string(use_diff=False))
    assert isinstance(found, dict)
    return found


def check_cache(shape: BaseShape, config: Any) -> None:
    """Check the cache of one token in all layers, and of long requests that decode, without pages behind windows."""
    assert shape.cache_elements == cache_shape(config, context_length=1).token_elements
    for tokens in (100, 3000, 50000):
        real = cache_shape(config, context_length=tokens)
        places, elements = shape.cache_of(tokens, whole=False)
        assert elements == real.token_elements
        assert places <= 16 * real.groups.pages(tokens, 1) < places + 16 * len(real.groups.windows)

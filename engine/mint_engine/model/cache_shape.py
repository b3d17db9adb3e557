"""Reads a base's cache from its configuration: its kind, and how much every layer keeps of a token."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from mint_contracts.attention import unserved_attention, windows
from mint_contracts.errors import UnsupportedBase
from mint_contracts.layer_groups import PAGE_TOKENS, LayerGroups, group_layers
from mint_contracts.settings import EngineSettings
from mint_engine.model.cache import Cache, KvCache, LatentCache, count_pages
from mint_engine.model.indexer import rotation_of
from mint_engine.model.latent_sizes import LatentSizes
from mint_engine.model.routes import RouteCache, RouteShape


@dataclass(frozen=True)
class KeyValueShape:
    """Keys and values of K heads of size D, in every layer."""

    groups: LayerGroups
    heads: int
    head_dim: int

    @property
    def token_elements(self) -> int:
        """Elements of one token in a page."""
        return 2 * self.groups.size * self.heads * self.head_dim

    def shared(self, heads: int) -> "KeyValueShape":
        """Return the shape of a rank that holds `heads` of the heads."""
        return replace(self, heads=heads)

    def make(self, pages: int, dtype: torch.dtype, device: torch.device) -> KvCache:
        """Create a cache of `pages` pages."""
        return KvCache(self.groups, self.heads, self.head_dim, pages, dtype, device)


@dataclass(frozen=True)
class LatentShape:
    """A latent, a rotated key and, if attention is sparse, an indexer's key (otherwise 0), in every layer."""

    groups: LayerGroups  # one, of all layers
    sizes: LatentSizes

    @property
    def token_elements(self) -> int:
        """Elements of one token in a page."""
        return self.groups.size * self.sizes.width

    def shared(self, _: int) -> "LatentShape":
        """Return the shape of any rank: all heads share what is kept, so each rank keeps it."""
        return self

    def make(self, pages: int, dtype: torch.dtype, device: torch.device) -> LatentCache:
        """Create a cache of `pages` pages."""
        return LatentCache(self.groups, self.sizes, pages, dtype, device)


def cache_shape(
    config: Any, *, context_length: int | None = None, whole: bool = False
) -> KeyValueShape | LatentShape:
    """Return the shape for a text model's configuration. Raises UnsupportedBase naming what is not served.

    Pages before a window are freed if requests may be longer, up to `context_length` tokens or any number. `whole`:
    one group of layers keeps all of a request's pages, since something else is stored by them.
    """
    if unserved := unserved_attention(lambda name: getattr(config, name, None)):
        raise UnsupportedBase(f"model type {config.model_type}", unserved)
    layers = int(config.num_hidden_layers)
    if getattr(config, "kv_lora_rank", None):
        return LatentShape(group_layers((None,) * layers), _latent_sizes(config))
    heads = int(config.num_attention_heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    values = int(getattr(config, "v_head_dim", None) or head_dim)
    if values != head_dim:
        message = f"has keys of {head_dim} numbers and values of {values}, which is not supported"
        raise UnsupportedBase(f"model type {config.model_type}", message)
    kept = windows(lambda name: getattr(config, name, None), layers)
    if context_length is not None:
        kept = tuple(None if each is None or each >= context_length else each for each in kept)
    groups = group_layers((None,) * layers if whole and None not in kept else kept)
    return KeyValueShape(groups, int(getattr(config, "num_key_value_heads", None) or heads), head_dim)


def _latent_sizes(config: Any) -> LatentSizes:
    sparse = bool(getattr(config, "index_topk", None))
    if sparse:
        rotation_of(config.model_type)
    return LatentSizes(
        latent=int(config.kv_lora_rank),
        rotated=int(config.qk_rope_head_dim),
        expanded=int(config.qk_nope_head_dim) + int(config.v_head_dim),
        index=int(config.index_head_dim) if sparse else 0,
        most=int(config.index_topk) if sparse else None,
    )


def shape_for(settings: EngineSettings, config: Any, routes: RouteShape | None) -> KeyValueShape | LatentShape:
    """Return the shape of an engine's cache, the same on all of its ranks. Raises UnsupportedBase."""
    replayed = routes is not None and settings.training_store is not None
    return cache_shape(config, context_length=settings.context_length, whole=replayed)


def make_cache(
    shape: KeyValueShape | LatentShape,
    routes: RouteShape | None,
    pages: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Cache:
    """Create a cache of `pages` pages, with room for their tokens' routes if these are to be kept."""
    cache = shape.make(pages, dtype, device)
    cache.routes = RouteCache(routes, pages, device) if routes is not None else None
    return cache


def pages_in(
    settings: EngineSettings, shape: KeyValueShape | LatentShape, routes: RouteShape | None, dtype: torch.dtype
) -> int:
    """Return how many pages the settings allow a base of that shape. Raises CapacityExceeded.

    They include tokens' routes if the engine trains, on all of its ranks, so that these agree.
    """
    kept = routes.token_bytes if routes is not None and settings.training_store is not None else 0
    page = PAGE_TOKENS * (shape.token_elements * dtype.itemsize + kept)
    return count_pages(settings.kv_cache_bytes, page, settings.context_length, shape.groups)

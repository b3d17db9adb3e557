"""The generic training pass: transformers' own modules under autograd. Right for every base that they compute.

The modules are a second tree over the very same weights, so that serving's swaps and training's never meet. Every
decoder layer is checkpointed: of a batch only the layers' inputs stay in memory.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import BaseModelOutputWithPast

from mint_engine.adapters.adapter import Module
from mint_engine.model.base import Base
from mint_engine.training import attend
from mint_engine.training.batch import Batch, Score
from mint_engine.training.delta import Current, TrainedLinear
from mint_engine.training.head import Head


class GenericPass:
    """Made from a base before serving swaps its modules."""

    name = "generic"

    def __init__(self, base: Base, modules: Mapping[str, Module]) -> None:
        self._model = _share(base.model)
        self._current = Current()
        attend.register()
        self._model.set_attn_implementation(attend.NAME)
        for path in modules:
            linear = self._model.get_submodule(path)
            self._model.set_submodule(path, TrainedLinear(linear, path, self._current))
        self._body = self._model.get_submodule(self._model.base_model_prefix)
        for layer in self._body.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        self.head = Head(self._logits)
        self._given = _Given()
        self._top = _share(base.model)  # only what comes after the body is used of it
        self._top.set_submodule(self._top.base_model_prefix, self._given)

    def run(self, batch: Batch, score: Score) -> Iterator[None]:
        """Compute a batch: its forward, what `score` makes of it, and the backward where that wants one."""
        with self._computing(batch), torch.enable_grad():
            # Autograd goes back to the first layer only if something there wants a gradient.
            embedded = self._body.get_input_embeddings()(batch.tokens[None]).requires_grad_(bool(batch.segments))
            hidden = self._body(
                inputs_embeds=embedded, position_ids=batch.positions[None], use_cache=False, trees=batch.trees
            ).last_hidden_state
        yield
        gradient = yield from score(hidden[0].detach())
        if gradient is not None:
            with self._computing(batch):
                torch.autograd.backward(hidden, gradient[None], inputs=[embedded])
            yield

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [n, V] of normed outputs [n, H], as the model's own code has them; differentiable."""
        self._given.hidden = hidden[None]
        try:
            # Whatever the body is asked, it gives what it was given.
            logits: torch.Tensor = self._top(input_ids=torch.zeros((1, 1), dtype=torch.int64), use_cache=False).logits
        finally:
            self._given.hidden = None
        return logits[0]

    @contextmanager
    def _computing(self, batch: Batch) -> Iterator[None]:
        """The modules see this batch; between two parts of the work another one may be computed."""
        self._current.segments = batch.segments
        try:
            yield
        finally:
            self._current.segments = ()


class _Given(nn.Module):
    """Stands where a model's body is and answers with what was computed before."""

    hidden: torch.Tensor | None = None

    def forward(self, *_: object, **__: object) -> BaseModelOutputWithPast:
        return BaseModelOutputWithPast(last_hidden_state=self.hidden)


def _share(model: nn.Module) -> Any:
    """The same modules once more, over the same parameters and buffers."""
    kept: dict[int, Any] = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)

"""The generic training pass: transformers' own modules under autograd. Correct for every base that they compute.

The modules are a second module tree over the same weights, so that the changes of serving and of training do not
interfere. A batch is computed one decoder layer at a time: only each layer's input stays in memory, and the backward
computes the layer again. Ranks communicate at the same points of it in both directions (see `sums`).
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from mint_contracts.cuts import Cut
from mint_engine.adapters.adapter import Module
from mint_engine.model.base import Base
from mint_engine.model.experts import is_stack
from mint_engine.model.indexer import rotation_of
from mint_engine.model.modules import layers_of, layers_prefix
from mint_engine.parallel.group import Group
from mint_engine.training import attend, indexed, replay, routed
from mint_engine.training.batch import Batch, Score
from mint_engine.training.delta import Current, TrainedLinear
from mint_engine.training.head import Head, differentiated
from mint_engine.training.pieces import PIECE_ROWS
from mint_engine.training.sums import add_sums

# What one layer takes in a backward, in numbers for each row: so many times its hidden size, and so many for each
# output of its linears, except routed experts'. An upper bound, by tiny bases on a CPU.
HIDDENS, OUTPUTS = 20, 3
_HANDED_ON = "prev_topk_indices"  # GLM-5: a layer's indexer's choice, which the next layer may share


@dataclass(frozen=True)
class _Arguments:
    """The arguments that the model's own code passes to one decoder layer beside the hidden states."""

    positional: tuple[Any, ...]
    named: dict[str, Any]

    def with_handed(self, handed: Any) -> "_Arguments":
        """Return these arguments with what the previous layer handed on."""
        return _Arguments(self.positional, {**self.named, _HANDED_ON: handed}) if _HANDED_ON in self.named else self


class GenericPass:
    """Made from a base before serving swaps its modules."""

    name = "generic"
    most_rows = PIECE_ROWS  # so that no policy has two pieces, which autograd would add up in its own order

    def __init__(self, base: Base, modules: Mapping[str, Module], group: Group | None) -> None:
        """With a `group`, the base is a rank's share."""
        self._model, self._current = _share(base.model), Current()
        attend.register()
        self._model.set_attn_implementation(attend.NAME)
        _put(self._model, modules, self._current, group.share.experts if group is not None else None)
        if group is not None:
            add_sums(self._model, group)
        path = layers_prefix(base.model).removesuffix(".layers.")  # of a vision model's text part
        self._body = self._model.get_submodule(path)
        self._sees = (
            self._body is not self._model.base_model
        )  # a vision model, whose outer modules also embed the tokens
        self._layers, self._relay = list(self._body.layers), _Relay()
        self._body.layers = nn.ModuleList([self._relay] * len(self._layers))
        # Models with sparse attention index into a mask before passing it on; nothing reads its content.
        sparse = getattr(base.config, "index_topk", None)
        self._masks = {"indexed_attention": torch.zeros(1, 1, 1, 1, device=base.device)} if sparse else None
        self.head = Head(differentiated(self._logits), group=group)
        self._given = _Given()
        self._top = _share(base.model)  # only what follows the body is used
        self._top.set_submodule(path, self._given)

    def run(self, batch: Batch, score: Score) -> Iterator[None]:
        """Compute a batch: the forward, `score`, and, if that returns a gradient, the backward.

        Yields after every layer, and in the backward also between recomputing a layer and its backward.
        """
        with torch.no_grad():
            hidden, arguments = self._begin(batch)
        handed, kept = None, list[tuple[torch.Tensor, _Arguments]]()
        for layer, each in zip(self._layers, arguments, strict=True):
            own = each.with_handed(handed if _shares(layer) else None)
            if batch.segments:
                kept.append((hidden, own))
            with torch.no_grad():
                hidden, handed = self._layer(layer, hidden, own, batch)
            yield
        with torch.enable_grad():
            last = hidden.requires_grad_()
            normed = self._end(batch, last)
        gradient = yield from score(normed[0].detach())
        if gradient is None:
            return
        (back,) = torch.autograd.grad(normed, last, gradient[None])
        while kept:
            layer, (before, own) = self._layers[len(kept) - 1], kept.pop()
            with torch.enable_grad():
                after, _ = self._layer(layer, before.requires_grad_(), own, batch)
            yield
            (back,) = torch.autograd.grad(after, before, back)
            yield

    def _layer(
        self, layer: Any, hidden: torch.Tensor, arguments: _Arguments, batch: Batch
    ) -> tuple[torch.Tensor, Any]:
        """Return a layer's output for hidden [1, T, H], and what it hands on to the next layer."""
        with self._computing(batch):
            found = layer(hidden, *arguments.positional, **arguments.named)
        return found if isinstance(found, tuple) else (found, None)

    def _begin(self, batch: Batch) -> tuple[torch.Tensor, list[_Arguments]]:
        """Return the first layer's input [1, T, H], and each layer's other arguments."""
        try:
            if self._sees:
                self._model(input_ids=batch.tokens[None], logits_to_keep=1, **self._body_arguments(batch))
            else:
                self._through(batch, self._body.get_input_embeddings()(batch.tokens[None]))
            return self._relay.taken[0], list(self._relay.arguments)
        finally:
            self._relay.forget()

    def _end(self, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
        """Return the body's output for that of the last layer: its norm."""
        self._relay.given = hidden
        try:
            return self._through(batch, hidden)
        finally:
            self._relay.forget()

    def _through(self, batch: Batch, embedded: torch.Tensor) -> torch.Tensor:
        """Run the body's own code around its layers; returns its output [1, T, H]."""
        found: torch.Tensor = self._body(inputs_embeds=embedded, **self._body_arguments(batch)).last_hidden_state
        return found

    def _body_arguments(self, batch: Batch) -> dict[str, Any]:
        positions = batch.positions[None]
        return {
            "attention_mask": self._masks, "position_ids": positions, "use_cache": False, "trees": batch.trees,
        }  # fmt: skip

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [n, V] of normed outputs [n, H] by the model's own code; differentiable."""
        self._given.hidden = hidden[None]
        try:
            # `_given`, in the body's place, returns this whatever its input.
            logits: torch.Tensor = self._top(inputs_embeds=hidden[None], use_cache=False).logits
        finally:
            self._given.hidden = None
        return logits[0]

    @contextmanager
    def _computing(self, batch: Batch) -> Iterator[None]:
        """Show the modules this batch; another one may be computed between two parts of the work."""
        self._current.batch = batch
        try:
            yield
        finally:
            self._current.batch = None


def kept_bytes(config: Any, dtype: torch.dtype) -> int:
    """Return the bytes per row that a text model keeps from the forward for the backward: each layer's input."""
    return int(config.num_hidden_layers) * int(config.hidden_size) * dtype.itemsize


def kept_of(base: Base) -> Callable[[int], int]:
    """Return a function from a number of rows to the bytes that `GenericPass` takes for them on this rank.

    They are `kept_bytes` of each; for each that is more than a piece, what is computed of one layer; and once there
    are more rows than an indexer chooses, which rows each row attends to, in the layer in progress and in those whose
    choice the next one shares (GLM-5).
    """
    config, each = base.config, kept_bytes(base.config, base.dtype)
    outputs = (
        sum(getattr(part, "out_features", 0) for part in layer.modules()) for _, layer in layers_of(base.model)
    )
    layer = (HIDDENS * int(config.hidden_size) + OUTPUTS * max(outputs)) * base.dtype.itemsize
    choosing = 1 + list(pairwise(getattr(config, "indexer_types", None) or ())).count(("full", "shared"))
    chosen = int(getattr(config, "index_topk", None) or 0)

    def kept(rows: int) -> int:
        return rows * each + max(0, rows - PIECE_ROWS) * layer + (rows**2 * choosing if 0 < chosen < rows else 0)

    return kept


def _shares(layer: Any) -> bool:
    """Whether a layer has no indexer, and attends to what an earlier one chose, if any does."""
    return getattr(getattr(layer, "self_attn", None), "indexer", None) is None


class _Relay(nn.Module):
    """Replaces every decoder layer of a body: records their arguments, and returns what was computed before."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[torch.Tensor] = []  # by each layer, its hidden states
        self.arguments: list[_Arguments] = []
        self.given: torch.Tensor | None = None

    def forget(self) -> None:
        """Clear all, since another batch may come next."""
        self.taken.clear()
        self.arguments.clear()
        self.given = None

    def forward(self, hidden: torch.Tensor, *positional: Any, **named: Any) -> Any:
        self.taken.append(hidden)
        self.arguments.append(_Arguments(positional, named))
        found = hidden if self.given is None else self.given
        return (found, None) if _HANDED_ON in named else found


class _Given(nn.Module):
    """Replaces a model's body and returns what was computed before."""

    hidden: torch.Tensor | None = None

    def forward(self, *_: object, **__: object) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=self.hidden)


def _share(model: nn.Module) -> Any:
    """Copy a module tree, sharing its parameters and buffers."""
    kept: dict[int, Any] = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, kept)


def _put(model: Any, modules: Mapping[str, Module], current: Current, experts: Cut | None) -> None:
    """Replace linears, experts and indexers by ones that read the batch. `experts` is which are held; None: all."""
    for path, module in modules.items():
        if not module.experts:
            model.set_submodule(path, TrainedLinear(model.get_submodule(path), path, current))
    stacks = {path: each for path, each in model.named_modules() if is_stack(each)}
    if stacks:
        routed.register()
        model.set_experts_implementation(routed.NAME)
    for layer, (path, each) in enumerate(stacks.items()):
        own = [module for module in modules.values() if module.path.rpartition(".")[0] == path]
        routed.prepare(each, own, current, experts or Cut(0, int(each.num_experts)))
        replay.prepare(model.get_submodule(path.rpartition(".")[0]), layer, int(each.num_experts), current)
    for each in model.modules():
        if (indexer := getattr(each, "indexer", None)) is not None:
            rotation_of(indexer.config.model_type)
            indexer.forward = partial(indexed.select, indexer, current)

"""Engines of one rank and of several that train, and policies over them, turn by turn in one thread."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from mint_contracts.source import Source
from mint_contracts.training import Loss
from mint_engine.build import build
from mint_engine.model.base import Base
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.generation import Generation
from mint_engine.scheduling.scheduler import Limits
from mint_engine.training.example import Example, PolicyBatch
from mint_engine.training.policy import PolicySettings
from mint_engine.training.trainer import Lead, Trainer
from tests.engine.parallel.nodes import Worker, other_nodes
from tests.engine.running import settings_for
from tests.engine.training.at_once import create, step_all
from tests.engine.training.scene import OPTIMIZER, awaken, groups, learn

SUMS = Loss(type="importance_sampling", ratio_low=0.0, ratio_high=0.0)
TO_BASE = Loss(kl_coefficient=0.3, ratio_low=0.0, ratio_high=0.0)
RANKS = (4, 8, 1)
NAMES = tuple(f"p/{number}" for number in range(len(RANKS)))


@dataclass
class Learning:
    """An engine, and whether it has reported that it is lost."""

    trainer: Trainer
    slots: Slots
    generation: Generation
    lost: list[bool] = field(default_factory=list)
    workers: list[Worker] = field(default_factory=list)  # its other nodes

    @property
    def vocabulary(self) -> int:
        return self.generation._forward.base.vocab_size

    def create(self) -> None:
        """Create policies of several ranks on every linear, experts included; the last one on only two kinds."""
        for number, (name, rank) in enumerate(zip(NAMES, RANKS, strict=True)):
            targets = ("down_proj", "o_proj") if number == 2 else ()
            self.trainer.drop(name)
            create(self.trainer, name, PolicySettings(rank, 2.0 * rank, targets, number))
            awaken(self.trainer, name, seed=number)

    def examples(self, number: int, turn: int = 0) -> list[Example]:
        return groups(5 + number + 10 * turn, vocabulary=self.vocabulary)

    def replayed(self, number: int, turn: int = 0) -> list[Example]:
        """The same, with given routes that every token must take, so that rounding cannot choose other experts."""
        config, kept = self.generation._forward.base.config, self.generation._forward.routes
        assert kept is not None
        _, layers, each = kept.pool.shape  # the first layers may have no routes
        experts = max(getattr(config, name, 0) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
        draw, found = np.random.default_rng(number), []
        for example in self.examples(number, turn):
            routes = draw.random((len(example.tokens), layers, experts)).argsort(-1)[..., :each]
            found.append(replace(example, routes=routes))
        return found

    def batches(self, numbers: Sequence[int], turn: int = 0, *, replayed: bool = False) -> list[PolicyBatch]:
        """The policies' batches; the second policy's loss holds it close to the base."""
        losses, examples = (SUMS, TO_BASE, SUMS), self.replayed if replayed else self.examples
        return [PolicyBatch(NAMES[each], examples(each, turn), losses[each]) for each in numbers]

    def gradients(self, *, replayed: bool = False) -> list[torch.Tensor]:
        """The gradients of new policies that learn together."""
        self.create()
        learn(self.trainer, self.batches(range(len(NAMES)), replayed=replayed))
        found = [self.trainer.policy(name).gradient for name in NAMES]
        return [each for each in found if each is not None]

    def train(self, numbers: Sequence[int], *, replayed: bool = False) -> list[torch.Tensor]:
        """Train these policies together for two steps; return their weights and moments."""
        for turn in range(2):
            learn(self.trainer, self.batches(numbers, turn, replayed=replayed))
            step_all(self.trainer, {NAMES[number]: OPTIMIZER for number in numbers})
        policies = [self.trainer.policy(NAMES[number]) for number in numbers]
        return [torch.stack([each.weights, each.exp_avg, each.exp_avg_sq]) for each in policies]


@contextmanager
def engine(
    base: Path, ranks: int, dtype: str = "float32", nodes: int = 1, *, quantised_experts: bool = False
) -> Iterator[Learning]:
    store = Source(f"file://{base}/runs")
    settings = settings_for(
        base,
        dtype=dtype,
        tensor_parallel_size=ranks,
        nodes=nodes,
        training_store=store,
        quantised_experts=quantised_experts,
    )
    trainers: list[Trainer] = []
    lost: list[bool] = []

    def equip(base: Base, slots: Slots, lead: Lead | None) -> None:
        trainers.append(Trainer(base, slots.modules, settings.max_rank, lead=lead))

    with other_nodes(settings) as group:
        _, slots, generation = build(
            settings, base, Limits(), equip, lambda: lost.append(True), threads=1, endpoint=group.endpoint
        )
        try:
            yield Learning(trainers[0], slots, generation, lost, group.workers)
        finally:
            generation.close()

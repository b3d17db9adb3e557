"""Trains many policies at once over one resident base. Owned by the step thread, like everything it holds.

    trainer = Trainer(base, modules, max_rank=32)         # before serving swaps the base's modules
    policy = trainer.maker.fresh("acme/support-7", PolicySettings(rank=8, alpha=16.0, seed=1))  # on any thread
    trainer.add(policy)
    work = trainer.begin([PolicyBatch("acme/support-7", examples, Loss(type="dapo"))])
    while work.advance():                                 # bounded pieces: decode in between
        ...
    work.results()["acme/support-7"].loss_sum
    taken = trainer.begin_step("acme/support-7", schedule.with_rate(Optimizer(), step, steps))
    while taken.advance():                                # here too
        ...
    hand_off(slots, slot, trainer.policy("acme/support-7"), "acme/support-7@1.1")

One forward and backward pass covers the tokens of all policies of the work. Each policy's gradient, normaliser, clip,
Adam moments and guard against NaN are its own, and its numbers are bit for bit the same whatever else is in the
batch. Gradients of several works accumulate until a step, to the same gradient as in a single work. A work may also
be one turn of updates that go on in other works (`Trainer.begin`), with the same bits as in a single work.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from mint_contracts.errors import EngineUnavailable, InvalidRequest, NotFound, TornPolicy
from mint_contracts.training import Optimizer
from mint_engine.adapters.adapter import Module
from mint_engine.model.base import Base
from mint_engine.model.experts import route_shape
from mint_engine.parallel.group import Group
from mint_engine.parallel.shares import ModuleCut, cuts_of, share_out
from mint_engine.training.example import PolicyBatch, check_examples
from mint_engine.training.making import Maker
from mint_engine.training.optimizer import check_rate
from mint_engine.training.passes import choose_pass
from mint_engine.training.pieces import add_up
from mint_engine.training.policy import FormLimits, Policy
from mint_engine.training.sharing import Sharing
from mint_engine.training.stepping import Stepping
from mint_engine.training.update_ranks import FollowerRanks, LeadRank, SingleRank, UpdateRanks
from mint_engine.training.work import Share, Work


@dataclass(frozen=True)
class Lead:
    """What the first of several ranks needs to lead the others."""

    others: FollowerRanks
    group: Group
    here: int  # count of ranks on this node, which are the first ones
    room: int | None = None  # bytes that the fullest of the others' GPUs has left for updates; None on CPUs


class Trainer:
    """The policies of one engine."""

    def __init__(
        self,
        base: Base,
        modules: Mapping[str, Module],
        max_rank: int,
        base_name: str = "",
        offered: Sequence[str] = (),
        *,
        lean: bool = True,
        lead: Lead | None = None,
    ) -> None:
        """`modules` are those that adapters may target, as in `Slots`, and `offered` the names that select them
        (none: they are all of the base's); `base_name` goes into PEFT's config.

        `lean=False` always uses the generic pass. With a `lead`, the base is the first rank's share, and the other
        ranks compute theirs. Raises UnsupportedBase if one of them uses another kind of pass.
        """
        self._base = base
        limits, cuts = FormLimits(max_rank, tuple(offered), base_name), _cuts_here(modules, lead)
        self.maker = Maker(modules, limits, base.dtype, base.device, cuts)
        self._policies: dict[str, Policy] = {}
        self.routes = route_shape(base.model)  # None: the base has no routed experts
        self._numbers = count()  # of shares of work
        passed = choose_pass(base, modules, lean=lean, group=lead.group if lead is not None else None)
        self._ranks: UpdateRanks = SingleRank(passed, base.dtype)
        if lead is not None:
            lead.others.check_training(passed.name)
            sharing = Sharing(modules, lead.group, base.dtype, base.device)
            self._ranks = LeadRank(passed, sharing, lead.others, base.dtype)

    @property
    def compute(self) -> str:
        """The name of the pass that computes."""
        return self._ranks.name

    @property
    def names(self) -> frozenset[str]:
        """The names of the policies that are here."""
        return frozenset(self._policies)

    @property
    def host_bytes(self) -> int:
        """The most host memory that the policies' own numbers take, on all ranks of this node. From any thread."""
        return sum(self.maker.needs_for(policy).own for policy in list(self._policies.values()))

    def refuse_known(self, name: str) -> None:
        """Raise InvalidRequest if a policy of this name is here: another one could not be put in."""
        if name in self._policies:
            raise InvalidRequest(f"policy {name}", "is already trained here; drop it first")

    def add(self, policy: Policy) -> None:
        """Add a policy that `maker` has made. Raises as `refuse_known`."""
        self.refuse_known(policy.name)
        self._policies[policy.name] = policy

    def replace(self, policy: Policy) -> None:
        """Replace the policy of the same name by one that `maker` has made. Raises NotFound if there is none."""
        if policy.name not in self._policies:
            raise _unknown(policy.name)
        self._policies[policy.name] = policy

    def drop(self, name: str) -> None:
        """Remove a policy, if it is here; a work that computes for it goes on without effect."""
        self._policies.pop(name, None)

    def policy(self, name: str) -> Policy:
        """Return a policy. Raises NotFound, EngineUnavailable during a step, TornPolicy if one was left halfway."""
        if name not in self._policies:
            raise _unknown(name)
        policy = self._policies[name]
        if policy.torn and policy.busy:
            raise EngineUnavailable(f"policy {name}", "is in the middle of a step; retry later")
        if policy.torn:
            why = "was left in the middle of a step; load a saved state, or drop it and create it again"
            raise TornPolicy(f"policy {name}", why)
        return policy

    def drop_gradient(self, name: str) -> None:
        """Drop the gradient since a policy's last step, if it is here and has no unfinished work."""
        policy = self._policies.get(name)
        if policy is not None and not policy.busy:
            policy.forget_gradient()

    def gradient_bytes(self, name: str) -> int:
        """Return the bytes of a policy's gradient; 0 if the policy is not here any more."""
        policy = self._policies.get(name)
        return policy.weights.nbytes if policy is not None else 0

    def check(self, batch: PolicyBatch) -> Iterator[None]:
        """Raise InvalidRequest for invalid examples; yields between bounded parts of the work."""
        return check_examples(batch, self._base.vocab_size, self._base.context_length)

    def begin(self, batches: Sequence[PolicyBatch | Share], *, checked: bool = False, most: int = 0) -> Work:
        """Return work that computes these policies' gradients, one batch each; nothing is computed yet.

        With `most`, compute at most that many rows of each, but at least one piece. What remains (`Work.left`) goes
        on in later works, passed in place of its batch; the policy is busy until its end.

        Raises as `policy`, and InvalidRequest for a policy that is in other unfinished work or whose gradient so far
        is of a loss that is divided differently, and, unless they are `checked`, for invalid examples.
        """
        fresh = [batch for batch in batches if isinstance(batch, PolicyBatch)]
        if len({batch.policy for batch in fresh}) != len(fresh):
            raise InvalidRequest("work", "has two batches of one policy; put their examples into one")
        for batch in fresh:
            self._check_free(batch)
            for _ in () if checked else self.check(batch):
                pass
        shares = [self._share_of(batch) if isinstance(batch, PolicyBatch) else batch for batch in batches]
        for share in shares:
            share.policy.busy = True
        return Work(self._ranks, shares, self._base.device, most)

    def begin_step(self, name: str, optimizer: Optimizer) -> Stepping:
        """Return an optimizer step of a policy; `schedule.with_rate` gives its rate. Nothing is changed yet.

        Raises as `policy`, and InvalidRequest for a policy without a gradient or in unfinished work, and for a
        learning rate too large for float32.
        """
        policy = self.policy(name)
        if policy.busy or policy.gradient is None:
            raise InvalidRequest(f"policy {name}", "has no finished gradient; compute one first")
        check_rate(policy, optimizer)
        return Stepping(policy, optimizer, self._base.dtype)

    def _share_of(self, batch: PolicyBatch) -> Share:
        return Share(next(self._numbers), self.policy(batch.policy), batch)

    def _check_free(self, batch: PolicyBatch) -> None:
        policy = self.policy(batch.policy)
        if policy.busy:
            raise InvalidRequest(f"policy {policy.name}", "has unfinished work; wait for it to end")
        if policy.gradient is not None and not add_up(policy.sums, batch.loss.type):
            raise InvalidRequest(
                f"policy {policy.name}",
                f"has a gradient of {policy.sums}, which is divided differently; take a step before using "
                f"{batch.loss.type}",
            )


def _cuts_here(modules: Mapping[str, Module], lead: Lead | None) -> list[Mapping[str, ModuleCut]]:
    if lead is None:
        return []
    share = lead.group.share
    return [cuts_of(modules, each) for each in share_out(share.whole, share.count)[: lead.here]]


def _unknown(name: str) -> NotFound:
    return NotFound(f"policy {name}", "is not trained on this engine")

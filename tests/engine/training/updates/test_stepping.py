"""An optimizer step in pieces has the bits of an undivided one, and nobody sees any of it before it is complete."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from mint_contracts.errors import Draining, EngineUnavailable, InvalidRequest, MintError, TornPolicy
from mint_contracts.training import Optimizer
from mint_engine.adapters.packed import halves
from mint_engine.policies.courses.handoff import hand_off
from mint_engine.policies.updates.copying import copying, packing
from mint_engine.policies.updates.updates import Job, Learnt, Updates
from mint_engine.training import optimizer as optimizers
from mint_engine.training import stepping as steppings
from mint_engine.training import work as works
from mint_engine.training.example import PolicyBatch
from mint_engine.training.policy import Policy, PolicySettings
from mint_engine.training.trainer import Trainer
from tests.engine.training.at_once import create, restore, saved_of, step_all
from tests.engine.training.scene import DAPO, OPTIMIZER, groups, learn, policies, trainer_of, trainer_with

STRETCH = 1 << 10
VECTORS = ("weights", "exp_avg", "exp_avg_sq")


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pieces so short that the tiny base's policies have many."""
    monkeypatch.setattr(optimizers, "_STRETCH", STRETCH)
    monkeypatch.setattr(optimizers, "_NORMS", 1)


def undivided(policy: Policy, gradient: torch.Tensor, optimizer: Optimizer) -> float:
    """Take a complete step, written out plainly, and return the gradient's norm."""
    gradient = gradient / max(1.0, policy.normaliser)
    norm = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if optimizer.max_grad_norm:
        gradient *= min(1.0, optimizer.max_grad_norm / (norm + 1e-6))
    policy.step += 1
    policy.weights.mul_(1 - optimizer.learning_rate * optimizer.weight_decay)
    policy.exp_avg.lerp_(gradient, 1 - optimizer.beta1)
    policy.exp_avg_sq.mul_(optimizer.beta2).addcmul_(gradient, gradient, value=1 - optimizer.beta2)
    spread = policy.exp_avg_sq.sqrt().div_(math.sqrt(1 - optimizer.beta2**policy.step)).add_(optimizer.epsilon)
    rate = optimizer.learning_rate / (1 - optimizer.beta1**policy.step)
    policy.weights.addcdiv_(policy.exp_avg, spread, value=-rate)
    return norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("most", [0.0, 1.0, 1e9])
@pytest.mark.usefixtures("short")
def test_its_bits_are_those_of_the_undivided_step(dtype: torch.dtype, most: float) -> None:
    wanted = Optimizer(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=most)
    trainers = [trainer_of(dtype=dtype) for _ in range(2)]
    for trainer in trainers:
        create(trainer, "p", PolicySettings(rank=16, seed=1))
    whole, parted = (trainer.policy("p") for trainer in trainers)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        gradient = torch.randn(whole.weights.numel(), generator=draw)
        whole.normaliser = 7.0
        norm = undivided(whole, gradient, wanted)
        parted.gradient, parted.normaliser = gradient.clone(), 7.0
        stepping, pieces = trainers[1].begin_step("p", wanted), 1
        while stepping.advance():
            pieces += 1
        assert pieces > whole.weights.numel() // STRETCH
        found = stepping.result()
        assert (found.step, found.skipped) == (whole.step, False)
        assert found.grad_norm == pytest.approx(norm, rel=1e-12)
        for name in VECTORS:
            assert torch.equal(getattr(parted, name), getattr(whole, name)), name
        assert parted.rounded is not None
        assert torch.equal(parted.rounded, whole.weights.to(dtype))
        assert trainers[1].policy("p").gradient is None
        assert not parted.busy
        assert not parted.torn


def ready(trainer: Trainer) -> None:
    """Create a policy that has taken a step and has a gradient for the next."""
    policies(trainer, 1)
    learn(trainer, [PolicyBatch("p/0", groups(1), DAPO)])
    step_all(trainer, {"p/0": OPTIMIZER})
    learn(trainer, [PolicyBatch("p/0", groups(2), DAPO)])


@pytest.mark.parametrize("epsilon", [0.0, 1e-46])
def test_without_an_epsilon_what_has_no_gradient_stays(epsilon: float) -> None:
    """A new policy's B is zero, and therefore A's gradient, too."""
    trainer = trainer_of()
    create(trainer, "p", PolicySettings(rank=4))
    policy = trainer.policy("p")
    before = [a.clone() for _, a, _ in halves(policy.form.layout, policy.weights)]
    learn(trainer, [PolicyBatch("p", groups(1), DAPO)])
    step_all(trainer, {"p": Optimizer(epsilon=epsilon)})
    for (_, a, b), begun in zip(halves(policy.form.layout, policy.weights), before, strict=True):
        assert torch.equal(a, begun)
        assert b.any()
        assert b.isfinite().all()


def test_a_gradient_whose_square_is_infinite_is_dropped() -> None:
    """It would stay in the second moment forever and freeze its weights. With clipping it is taken like any other."""
    trainer = trainer_of()
    ready(trainer)
    policy = trainer.policy("p/0")
    assert policy.gradient is not None
    before, finite = [getattr(policy, name).clone() for name in VECTORS], policy.gradient.clone()
    policy.gradient[-1] = 1e25
    outcome = step_all(trainer, {"p/0": Optimizer(max_grad_norm=0.0)})["p/0"]
    assert (outcome.skipped, outcome.step) == (True, 1)
    for name, was in zip(VECTORS, before, strict=True):
        assert torch.equal(getattr(policy, name), was), name
    policy.gradient = finite.mul_(1e25)
    assert not step_all(trainer, {"p/0": Optimizer(max_grad_norm=1.0)})["p/0"].skipped
    assert all(getattr(policy, name).isfinite().all() for name in VECTORS)


@pytest.mark.usefixtures("short")
def test_until_its_first_change_a_step_is_given_up_without_a_trace() -> None:
    trainer, other = trainer_of(), trainer_of()
    for each in (trainer, other):
        ready(each)
    before = saved_of(trainer, "p/0")
    stepping = trainer.begin_step("p/0", OPTIMIZER)
    for _ in range(3):
        assert stepping.advance()
        assert saved_of(trainer, "p/0") == before
    with pytest.raises(InvalidRequest, match="no finished gradient"):
        trainer.begin_step("p/0", OPTIMIZER)
    with pytest.raises(InvalidRequest, match="has unfinished work"):
        trainer.begin([PolicyBatch("p/0", groups(3), DAPO)])
    stepping.cancel()
    assert saved_of(trainer, "p/0") == before
    for each in (trainer, other):
        step_all(each, {"p/0": OPTIMIZER})
    assert saved_of(trainer, "p/0") == saved_of(other, "p/0")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.usefixtures("short")
def test_non_finite_values_at_the_very_end_are_found_before_anything_changes(bad: float) -> None:
    trainer = trainer_of()
    ready(trainer)
    policy = trainer.policy("p/0")
    assert policy.gradient is not None
    policy.gradient[-1] = bad
    before = [getattr(policy, name).clone() for name in VECTORS]
    stepping = trainer.begin_step("p/0", OPTIMIZER)
    while stepping.advance():
        assert not policy.torn
    assert stepping.result().skipped
    assert all(torch.equal(getattr(policy, name), each) for name, each in zip(VECTORS, before, strict=True))
    assert policy.step == 1
    assert trainer.policy("p/0").gradient is None


def torn(trainer: Trainer) -> Callable[[], None]:
    """Take half of a step, and return the function that gives it up."""
    policy, stepping = trainer.policy("p/0"), trainer.begin_step("p/0", OPTIMIZER)
    while not policy.torn:
        assert stepping.advance()
    assert stepping.advance()
    return stepping.cancel


LOOKS: list[Callable[[Trainer], object]] = [
    lambda trainer: trainer.policy("p/0"),
    lambda trainer: next(copying(trainer, "p/0")),
    lambda trainer: next(packing(trainer, "p/0", torch.float32)),
    lambda trainer: hand_off(None, 0, trainer.policy("p/0"), "p/0@1.2"),  # type: ignore[arg-type]
    lambda trainer: trainer.begin([PolicyBatch("p/0", groups(3), DAPO)]),
    lambda trainer: trainer.begin_step("p/0", OPTIMIZER),
]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("cut_off", [False, True])
@pytest.mark.usefixtures("short")
def test_half_a_step_is_neither_saved_nor_published_nor_gone_on_from(
    look: Callable[[Trainer], object], *, cut_off: bool
) -> None:
    trainer = trainer_of()
    ready(trainer)
    give_up = torn(trainer)
    if cut_off:
        give_up()
    refusal = (
        pytest.raises(
            TornPolicy, match="policy p/0: was left in the middle of a step; load a saved state, or drop it"
        )
        if cut_off
        else pytest.raises(EngineUnavailable, match="policy p/0: is in the middle of a step; retry")
    )
    with refusal:
        look(trainer)
    assert TornPolicy.terminal, "nobody waits for what never comes"


@pytest.mark.usefixtures("short")
def test_a_policy_that_was_left_within_a_step_goes_on_from_what_it_has_saved() -> None:
    trainer, other = trainer_of(), trainer_of()
    for each in (trainer, other):
        ready(each)
    saved = saved_of(trainer, "p/0")
    torn(trainer)()
    trainer.replace(trainer.maker.read("p/0", saved))
    for each in (trainer, other):
        step_all(each, {"p/0": OPTIMIZER})
    assert saved_of(trainer, "p/0") == saved_of(other, "p/0")


def beside_tenants(trainer: Trainer) -> Updates:
    """Return updates whose pieces each take longer than the time that one step of tenants allows."""
    ticks = itertools.count()
    return Updates(trainer, clock=lambda: next(ticks) * 0.003)


def put(updates: Updates, name: str, told: list[Learnt | MintError], ended: list[bytes]) -> None:
    batch = PolicyBatch(name, groups(1), DAPO)
    updates.put(Job(batch, OPTIMIZER, lambda trainer: ended.append(saved_of(trainer, name)), told.append))


@pytest.mark.usefixtures("short")
def test_an_engine_decodes_between_the_pieces_of_a_step_and_nobody_gets_half_of_it() -> None:
    trainer, other = trainer_with(2), trainer_with(2)
    updates, told, ended, looks = beside_tenants(trainer), list[Learnt | MintError](), list[bytes](), list[object]()
    put(updates, "p/0", told, ended)
    within = 0
    while updates.busy:
        policy = trainer._policies["p/0"]
        if policy.torn:
            within += 1
        if policy.torn and within % 4 == 0:
            updates.call(lambda: looks.append(updates.defects.attempt(lambda: saved_of(trainer, "p/0"), "", "")))
        updates.advance(16, 0.01)  # one tenants' step after each piece
    assert within > 10
    assert all(isinstance(each, EngineUnavailable) for each in looks[:-1])
    learn(other, [PolicyBatch("p/0", groups(1), DAPO)])
    step_all(other, {"p/0": OPTIMIZER})
    assert ended == [saved_of(other, "p/0")]
    assert isinstance(told[0], Learnt)


@pytest.mark.usefixtures("short")
def test_an_engine_that_ends_within_a_step_takes_that_one_to_its_end_and_begins_no_other() -> None:
    trainer, other = trainer_with(2), trainer_with(2)
    updates, told, ended = beside_tenants(trainer), list[Learnt | MintError](), list[bytes]()
    for name in ("p/0", "p/1"):
        put(updates, name, told, ended)
    while not trainer._policies["p/0"].torn:
        updates.advance(16, 0.01)
    updates.close()
    assert [type(each) for each in told] == [Learnt, Draining]
    learn(other, [PolicyBatch("p/0", groups(1), DAPO)])
    step_all(other, {"p/0": OPTIMIZER})
    assert ended == [saved_of(trainer, "p/0")] == [saved_of(other, "p/0")]
    assert not updates.busy
    assert trainer.policy("p/1").step == 0


def test_a_work_given_up_at_its_very_end_leaves_what_had_accumulated_as_it_was() -> None:
    trainer = trainer_with(1)
    learn(trainer, [PolicyBatch("p/0", groups(1), DAPO)])
    before = saved_of(trainer, "p/0")
    work, pieces = trainer.begin([PolicyBatch("p/0", groups(2), DAPO)]), 0
    while work.advance():
        pieces += 1
    restored = trainer_of()
    restore(restored, "p/0", before)
    work = restored.begin([PolicyBatch("p/0", groups(2), DAPO)])
    for _ in range(pieces):
        work.advance()
    work.cancel()
    assert saved_of(restored, "p/0") == before


class Device:
    """Fails when the host waits for it for the given time, from 1 on; 0 for never."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._fails_at, self.waited = 0, 0
        for module in (works, steppings, optimizers):
            monkeypatch.setattr(module, "settle", self._settle)

    def fail(self, at: int) -> None:
        self._fails_at, self.waited = at, 0

    def _settle(self, _: torch.device) -> None:
        self.waited += 1
        if self.waited == self._fails_at:
            raise RuntimeError("the device has failed")


def take_all(advance: Callable[[], bool]) -> None:
    while advance():
        pass


def test_a_work_changes_no_policy_however_late_its_device_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    device, trainer = Device(monkeypatch), trainer_with(1)
    learn(trainer, [PolicyBatch("p/0", groups(1), DAPO)])
    before = saved_of(trainer, "p/0")
    device.fail(0)
    learn(trainer, [PolicyBatch("p/0", groups(2), DAPO)])
    waits = device.waited
    trainer.replace(trainer.maker.read("p/0", before))
    policy = trainer.policy("p/0")
    for at in range(1, waits + 1):
        device.fail(at)
        work = trainer.begin([PolicyBatch("p/0", groups(2), DAPO)])
        with pytest.raises(RuntimeError, match="the device has failed"):
            take_all(work.advance)
        assert work.done
        assert not policy.busy
        assert saved_of(trainer, "p/0") == before
    assert waits > 2


@pytest.mark.usefixtures("short")
def test_a_step_whose_device_fails_at_the_very_end_leaves_its_policy_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    device, trainer, other = Device(monkeypatch), trainer_of(), trainer_of()
    for each in (trainer, other):
        ready(each)
    before, policy = saved_of(other, "p/0"), other.policy("p/0")
    device.fail(0)
    step_all(trainer, {"p/0": OPTIMIZER})
    for at, left_torn in ((1, False), (device.waited, True)):
        assert saved_of(other, "p/0") == before
        device.fail(at)
        stepping = other.begin_step("p/0", OPTIMIZER)
        with pytest.raises(RuntimeError, match="the device has failed"):
            take_all(stepping.advance)
        assert (policy.torn, policy.busy) == (left_torn, False)

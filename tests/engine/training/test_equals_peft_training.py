"""A mixed batch's gradients and updated weights equal those of separate runs of PEFT and torch.optim.AdamW."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mint_contracts.training import Loss
from mint_engine.training.example import PolicyBatch, with_old
from tests.engine.training.at_once import step_all
from tests.engine.training.scene import (
    DAPO,
    OPTIMIZER,
    dapo,
    groups,
    learn,
    peft_of,
    peft_vector,
    policies,
    trainer_of,
)


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
def test_gradients_and_weights_of_a_mixed_batch(lean: bool) -> None:
    """Four policies of different ranks, targets and temperatures share one forward and backward, for three steps."""
    trainer = trainer_of(lean=lean)
    assert trainer.compute.startswith("lean" if lean else "generic")
    names = policies(trainer, 4)
    models = {name: peft_of(trainer, name) for name in names}
    adams = {
        name: torch.optim.AdamW(
            [each for each in models[name].parameters() if each.requires_grad],
            lr=OPTIMIZER.learning_rate, betas=(OPTIMIZER.beta1, OPTIMIZER.beta2), eps=OPTIMIZER.epsilon,
            weight_decay=OPTIMIZER.weight_decay,
        )
        for name in names
    }  # fmt: skip
    heat = dict(zip(names, (1.0, 0.7, 1.5, 1.0), strict=True))
    for turn in range(3):
        examples = {name: groups(10 * turn + number) for number, name in enumerate(names)}
        batches = [PolicyBatch(name, examples[name], DAPO, temperature=heat[name]) for name in names]
        found = learn(trainer, batches)
        for name in names:
            policy, outcome = trainer.policy(name), found[name]
            adams[name].zero_grad()
            loss = dapo(models[name], examples[name], temperature=heat[name])
            loss.backward()  # type: ignore[no-untyped-call]
            assert policy.gradient is not None
            assert outcome.finite
            assert outcome.loss_sum / outcome.tokens == pytest.approx(float(loss.detach()), rel=1e-4)
            expected = peft_vector(trainer, name, models[name], gradient=True)
            assert expected.norm() > 0
            torch.testing.assert_close(policy.gradient / policy.normaliser, expected, rtol=1e-3, atol=2e-5)
        stepped = step_all(trainer, dict.fromkeys(names, OPTIMIZER))
        for name in names:
            trained = [each for each in models[name].parameters() if each.requires_grad]
            norm = torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.max_grad_norm)
            adams[name].step()
            assert stepped[name].grad_norm == pytest.approx(float(norm), rel=1e-4)
            assert stepped[name].step == turn + 1
            expected = peft_vector(trainer, name, models[name], gradient=False)
            torch.testing.assert_close(trainer.policy(name).weights, expected, rtol=1e-3, atol=5e-5)


@pytest.mark.parametrize("rows", [16, 256], ids=["several chunks", "one chunk"])
@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
def test_gradients_at_the_level_of_sequences(lean: bool, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token's gradient depends on all tokens of its completion, also where their logits are several chunks.

    In the first of two epochs nothing is clipped, in the second some completions are. Beside the policy is one that
    weighs each token.
    """
    loss = Loss(ratio_low=0.0, ratio_high=0.0, clip_low=0.5, clip_high=2.0, importance_sampling_level="sequence")
    trainer = trainer_of(lean=lean)
    passed: Any = trainer._ranks
    monkeypatch.setattr(passed._pass, "head", replace(passed._pass.head, rows=rows))
    names, losses = policies(trainer, 2), (loss, DAPO)
    batches = [PolicyBatch(name, groups(at), losses[at]) for at, name in enumerate(names)]
    clipped = []
    for _ in range(2):
        found = learn(trainer, batches)
        clipped.append(found[names[0]].metrics["clipped"])
        for batch in batches:
            name, outcome = batch.policy, found[batch.policy]
            model, policy = peft_of(trainer, name), trainer.policy(name)
            value = dapo(model, batch.examples, batch.loss)
            value.backward()  # type: ignore[no-untyped-call]
            expected = peft_vector(trainer, name, model, gradient=True)
            assert policy.gradient is not None
            assert expected.norm() > 0
            assert outcome.loss_sum / outcome.tokens == pytest.approx(float(value.detach()), rel=1e-4)
            torch.testing.assert_close(policy.gradient / policy.normaliser, expected, rtol=1e-3, atol=2e-5)
        batches = [with_old(batch, found[batch.policy].logprobs) for batch in batches]
        step_all(trainer, dict.fromkeys(names, OPTIMIZER))
    assert clipped[0] == 0.0
    assert 0.0 < clipped[1] < 1.0


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
def test_gradients_towards_the_base(lean: bool) -> None:
    """With a KL coefficient, at each policy's own temperature, before its first step and after it."""
    loss, heat = Loss(ratio_low=0.0, ratio_high=0.0, kl_coefficient=0.2), (0.7, 1.5)
    trainer = trainer_of(lean=lean)
    names = policies(trainer, 2)
    batches = [PolicyBatch(name, groups(at), loss, temperature=heat[at]) for at, name in enumerate(names)]
    for _ in range(2):
        found = learn(trainer, batches)
        for batch in batches:
            name, outcome = batch.policy, found[batch.policy]
            model, policy = peft_of(trainer, name), trainer.policy(name)
            value = dapo(model, batch.examples, loss, batch.temperature)
            value.backward()  # type: ignore[no-untyped-call]
            expected = peft_vector(trainer, name, model, gradient=True)
            assert policy.gradient is not None
            assert outcome.metrics["kl"] > 0.0
            assert outcome.loss_sum / outcome.tokens == pytest.approx(float(value.detach()), rel=1e-4)
            assert float((policy.gradient / policy.normaliser - expected).norm() / expected.norm()) < 1e-4
        step_all(trainer, dict.fromkeys(names, OPTIMIZER))


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
def test_gradients_over_a_base_in_bfloat16(lean: bool) -> None:
    """PEFT keeps A and B in float32 here; ours are cast to bfloat16, which has three digits, for the products.

    Relative to their norm the gradients differ by a few hundredths, and in scale by up to a tenth, because rounding
    enters the exponents of the likelihood ratios that weigh them. No ratio is clipped: rounding would decide on which
    side of the clip it falls.
    """
    loss = Loss(ratio_low=0.0, ratio_high=0.0, clip_low=0.999, clip_high=1000.0)
    trainer = trainer_of(dtype=torch.bfloat16, lean=lean)
    names = policies(trainer, 3)
    examples = {name: groups(number) for number, name in enumerate(names)}
    learn(trainer, [PolicyBatch(name, examples[name], loss) for name in names])
    for name in names:
        model, policy = peft_of(trainer, name, dtype=torch.bfloat16), trainer.policy(name)
        dapo(model, examples[name], loss).backward()  # type: ignore[no-untyped-call]
        expected = peft_vector(trainer, name, model, gradient=True)
        assert policy.gradient is not None
        found = policy.gradient / policy.normaliser
        assert float((found - expected).norm() / expected.norm()) < 0.15
        assert float(torch.cosine_similarity(found, expected, dim=0)) > 0.995

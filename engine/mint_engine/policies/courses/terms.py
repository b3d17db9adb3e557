"""The terms that one policy trains by: its wave's settings, overridden by its own."""

import msgspec

from mint_contracts.errors import InvalidRequest
from mint_contracts.training import Dataset, Loss, Optimizer, Reward, Train
from mint_contracts.training_records import TrainAssignment, WaveTraining
from mint_engine.requests.parameters import Sampling
from mint_engine.training.policy import PolicySettings


class Terms(msgspec.Struct, frozen=True):
    """The settings that stay the same throughout a course."""

    policy: str
    wave: str
    run: str
    lease: int
    saved: int  # as in TrainAssignment
    train: Train
    form: PolicySettings
    start_from: str
    dataset: Dataset
    reward: Reward | None  # None: supervised
    optimizer: Optimizer
    loss: Loss
    sampling: Sampling  # each rollout sets its own seed

    @property
    def supervised(self) -> bool:
        """Whether it learns from given answers instead of its own completions."""
        return self.train.algorithm == "SFT"

    @property
    def draw_seed(self) -> int:
        """The seed of the order in which examples are drawn."""
        return self.dataset.shuffle_seed + self.form.seed


def terms_of(wave: WaveTraining, assignment: TrainAssignment) -> Terms:
    """Return a policy's terms. Raises InvalidRequest if its wave lacks settings or they do not fit together."""
    train, own, subject = wave.train, assignment.settings, f"policy {assignment.policy!r}"
    dataset = own.dataset or train.dataset
    reward = own.reward or train.reward
    if dataset is None:
        raise InvalidRequest(subject, "has no dataset; set spec.train.dataset or the policy's own")
    if reward is None and train.algorithm == "GRPO":
        raise InvalidRequest(subject, "has no reward; set spec.train.reward or the policy's own")
    if reward is None and train.evaluation is not None:
        reason = "has no reward to score its evaluations by; set spec.train.reward or the policy's own"
        raise InvalidRequest(subject, reason)
    loss = Loss(type="cross_entropy") if train.algorithm == "SFT" else own.loss or train.loss
    if train.algorithm == "GRPO" and loss.type == "cross_entropy":
        raise InvalidRequest(subject, "cannot learn its own completions by cross_entropy; use dapo, or algorithm SFT")
    sampling = train.sampling
    return Terms(
        policy=assignment.policy,
        wave=assignment.wave,
        run=assignment.run,
        lease=assignment.lease,
        saved=assignment.saved,
        train=train,
        form=PolicySettings(own.rank or 8, own.alpha or 16.0, tuple(own.target_modules), own.seed or 0),
        start_from=own.start_from,
        dataset=dataset,
        reward=reward,
        optimizer=own.optimizer or train.optimizer,
        loss=loss,
        sampling=Sampling(
            max_tokens=sampling.max_tokens,
            seed=0,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            stop=tuple(sampling.stop),
            logprobs=0,
            tempered_logprobs=True,
        ),
    )

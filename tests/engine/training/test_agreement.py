"""What the trainer thinks of a token is what the sampler thought when it drew it, to the rounding of its dtype.

In float32 to a few units of the last place. In bfloat16 sampler and trainer round sums at different places, each to
8 bits: over these models' two layers, whose log-probabilities spread over some 5 nats, that explains 0.03 on average
and 0.25 at most.
"""

import pytest
import torch
from transformers import PreTrainedConfig, Qwen3Config

from mint_engine.model.attention import Span
from mint_engine.model.cache import KvCache
from mint_engine.model.forward import Forward
from mint_engine.model.modules import find_modules
from mint_engine.residency.slots import Slots
from mint_engine.scheduling.pages import pages_for
from mint_engine.training.example import Example, PolicyBatch
from mint_engine.training.trainer import Trainer
from tests.engine.training.at_once import packed_of, step_all
from tests.engine.training.scene import CPU, LLAMA, OPTIMIZER, SIZES, base_of, groups, learn, policies

MEAN = {torch.float32: 1e-5, torch.bfloat16: 0.03}
MOST = {torch.float32: 1e-4, torch.bfloat16: 0.25}


def sampler_logprobs(forward: Forward, example: Example) -> torch.Tensor:
    """By the pass that serves, from slot 1: the prompt as a chunk, then a token at a time, as rollouts go."""
    prompt, found = next(at for at, weight in enumerate(example.weights) if weight) + 1, []
    for start, stop in ((0, prompt), *((at, at + 1) for at in range(prompt, len(example.tokens)))):
        span = Span(0, stop - start, start, list(range(1, 1 + pages_for(stop))), slot=1)
        found.append(forward.run(list(example.tokens[start:stop]), [span], [stop - start - 1]).float())
    targets = torch.tensor(list(example.targets[prompt - 1 :]))
    return torch.cat(found).log_softmax(-1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "generic"])
@pytest.mark.parametrize("dtype", MEAN)
@pytest.mark.parametrize("config", [LLAMA, Qwen3Config(**SIZES)], ids=["llama", "qwen3"])
def test_trainer_and_sampler_agree(config: PreTrainedConfig, dtype: torch.dtype, lean: bool) -> None:
    """Also after a step: the published revision is what the trainer goes on from."""
    base = base_of(config, dtype)
    modules = find_modules(base.model)
    trainer = Trainer(base, modules, max_rank=16, lean=lean)
    slots = Slots(modules, 2, 16, dtype, CPU)
    forward = Forward(base, slots, KvCache(2, 2, 32, 40, dtype, CPU), lean=lean)
    (name,) = policies(trainer, 1)
    for turn in range(2):
        slots.load(1, packed_of(trainer, name))
        examples = groups(turn)
        ours = learn(trainer, [PolicyBatch(name, examples)])[name].logprobs
        differences = torch.cat(
            [
                (
                    torch.from_numpy(one)[torch.tensor(list(example.weights)) != 0]
                    - sampler_logprobs(forward, example)
                ).abs()
                for one, example in zip(ours, examples, strict=True)
            ]
        )
        assert float(differences.mean()) < MEAN[dtype]
        assert float(differences.max()) < MOST[dtype]
        step_all(trainer, {name: OPTIMIZER})

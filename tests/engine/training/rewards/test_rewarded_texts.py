"""What a reward gets of a completion."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mint_contracts.training import Dataset, TrainSampling
from mint_engine.rewards.completion import Completion
from mint_engine.rewards.scorer import Scorer
from tests.engine.channelled import save_channelled
from tests.engine.training.training_engine import train, training


@pytest.mark.parametrize("chat", [False, True])
async def test_messages_in_channels_are_rewarded_with_their_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, chat: bool
) -> None:
    """Without these, `assistantfinal-42` ends in no negative number, and the answer is not told from the thought."""
    texts, score = list[str](), Scorer.score

    async def note(
        scorer: Scorer, policy: str, step: int, completions: Sequence[Completion], *rest: Any
    ) -> list[float]:
        texts.extend(each.text for each in completions)
        return await score(scorer, policy, step, completions, *rest)

    monkeypatch.setattr(Scorer, "score", note)
    dataset = Dataset(lines=[json.dumps({"prompt": "Deep?"})], chat=chat)
    wave = train(dataset=dataset, steps=1, group_size=16, sampling=TrainSampling(max_tokens=64))
    async with training(save_channelled(tmp_path / "base"), tmp_path, wave) as scene:
        await scene.complete("acme/one")
    assert len(texts) == 32
    assert any("<|channel|>" in each for each in texts) == chat

"""The programs that docs/training.md shows, as they stand there, with a real engine."""

import re
from pathlib import Path
from typing import Any

import pytest

from mint_gateway.client import Client, question
from mint_gateway.policy import example
from tests.apiserver import ROOT
from tests.docs.pages import blocks
from tests.gateway.taught import School

PROGRAMS = [block for block in blocks(ROOT / "docs" / "training.md") if "async with Client(" in block]


@pytest.mark.parametrize("shown", range(3), ids=["supervised", "rewarded", "preferred"])
async def test_a_program_of_the_pages_trains_and_publishes(
    school: School, base: Path, patient: Client, shown: int
) -> None:
    code = "\n".join(PROGRAMS[: shown + 1]).replace("asyncio.run(main())", "")
    for placeholder, here in (
        (r"127\.0\.0\.1:8470", school.scene.target),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", str(base)),
    ):
        code, replaced = re.subn(placeholder, here, code)
        assert replaced
    names: dict[str, Any] = {}
    exec(compile(code, "docs/training.md", "exec"), names)
    await names["main"]()
    [trained] = (await patient.policies()).policies
    assert trained.step == 20
    answer = await patient.answer(question("Write one.", adapter=trained.policy, max_tokens=8))
    assert answer.revision
    if shown == 0:
        lesson = example(names["chat"]("Write one."), names["tokenizer"].encode("An old silent pond."))
        before, after = [
            await policy.forward_backward([lesson], loss="cross_entropy")
            for policy in (await patient.create_policy("acme/fresh", rank=8), await patient.policy(trained.policy))
        ]
        assert after.loss_sum < before.loss_sum
    if shown == 2:
        prompt, pair = names["chat"]("Write one."), [names["tokenizer"].encode(text) for text in ("An old", "No.")]
        before, after = [
            await names["logprobs"](policy, prompt, pair)
            for policy in (await patient.create_policy("acme/fresh", rank=8), await patient.policy(trained.policy))
        ]
        assert after[0] > before[0]
        assert after[1] < before[1]

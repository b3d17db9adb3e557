"""docs/platform.md's health script for Argo CD judges objects as people would. Redis runs it, with the same Lua."""

import json
import re
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.apiserver import ROOT
from tests.docs.pages import blocks

[SCRIPT] = [block for block in blocks(ROOT / "docs" / "platform.md") if re.match(r"local health\b", block)]
READY, NOT_READY = ("Ready", "True", "EnginesReady"), ("Ready", "False", "EnginesStarting")


@pytest.mark.parametrize(
    ("conditions", "health"),
    [
        ([], "Progressing"),
        ([NOT_READY], "Progressing"),
        ([("Ready", "Unknown", "MapUnavailable")], "Progressing"),
        ([READY], "Healthy"),
        ([NOT_READY, ("Stalled", "True", "CorruptFile")], "Degraded"),
        ([READY, ("Stalled", "True", "ApplyFailed")], "Degraded"),
        ([READY, ("Reconciling", "True", "RollingUpdate")], "Progressing"),
        ([("Ready", "False", "Expired"), ("Complete", "True", "Expired")], "Healthy"),
        ([("Ready", "False", "TrainingPaused"), ("Complete", "False", "TrainingPaused")], "Suspended"),
        ([("Ready", "False", "TrainingCancelled"), ("Complete", "False", "TrainingCancelled")], "Suspended"),
    ],
)
async def test_health(redis_client: Redis, conditions: list[tuple[str, str, str]], health: str) -> None:
    told = [
        {"type": kind, "status": status, "reason": reason, "message": "why"} for kind, status, reason in conditions
    ]
    assert await judged(redis_client, {"observedGeneration": 2, "conditions": told}) == health


@pytest.mark.parametrize("status", [{}, {"observedGeneration": 0}, {"observedGeneration": 1}])
async def test_an_object_whose_generation_is_not_observed_is_progressing(
    redis_client: Redis, status: dict[str, Any]
) -> None:
    ready = {"type": "Ready", "status": "True", "reason": "EnginesReady", "message": ""}
    assert await judged(redis_client, status | {"conditions": [ready]}) == "Progressing"


async def judged(redis: Redis, status: dict[str, Any]) -> str:
    """Return the health of an object of generation 2 with this status."""
    body = f"local obj = cjson.decode(ARGV[1])\nlocal function judge()\n{SCRIPT}\nend\nreturn judge().status"
    found: str = await redis.eval(body, 0, json.dumps({"metadata": {"generation": 2}, "status": status}))
    return found

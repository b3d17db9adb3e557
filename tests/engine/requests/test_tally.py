"""What the engine's metrics say of a request: its tokens, its times, and how it ended."""

import pytest
from prometheus_client import REGISTRY

from mint_contracts.sampling_pb2 import Chunk, Finished, GenerateEvent, Started
from mint_engine.requests.parameters import Sampling
from mint_engine.requests.request import CheckedRequest
from mint_engine.requests.tally import Tally

PROMPT = (1, 2, 3)
STARTED = GenerateEvent(started=Started())
END = GenerateEvent(finished=Finished(reason=Finished.LENGTH, cached_tokens=2))
STOP = GenerateEvent(finished=Finished(reason=Finished.STOP, cached_tokens=2))


def chunk(*token_ids: int) -> GenerateEvent:
    return GenerateEvent(chunk=Chunk(token_ids=token_ids))


def counted(*events: GenerateEvent, n: int = 1, outcome: str = "length") -> dict[str, float]:
    """Return by how much the metrics grow with a request that has these events."""
    names = {
        "prompt": ("mint_engine_tokens_total", {"kind": "prompt"}),
        "cached": ("mint_engine_tokens_total", {"kind": "cached"}),
        "completion": ("mint_engine_tokens_total", {"kind": "completion"}),
        "first tokens": ("mint_engine_first_token_seconds_count", {}),
        "ended so": ("mint_engine_requests_total", {"outcome": outcome}),
        "ended": ("mint_engine_request_seconds_count", {}),
    }

    def now() -> dict[str, float]:
        return {what: REGISTRY.get_sample_value(*name) or 0.0 for what, name in names.items()}

    before, tally = now(), Tally()
    for event in events:
        tally.count(event, CheckedRequest("r", "", PROMPT, Sampling(max_tokens=9, seed=0, n=n)))
    tally.close()
    return {what: value - before[what] for what, value in now().items() if value != before[what]}


ENDED = {"ended so": 1, "ended": 1}


def test_the_prompt_is_counted_once_and_a_token_of_all_completions() -> None:
    found = counted(STARTED, chunk(7), chunk(8, 9), chunk(7), END, STOP, n=2, outcome="stop")
    assert found == {"prompt": 3, "cached": 2, "completion": 4, "first tokens": 1} | ENDED


def test_a_request_for_no_tokens_has_no_first_token() -> None:
    assert counted(STARTED, END) == {"prompt": 3, "cached": 2} | ENDED


@pytest.mark.parametrize("events", [(), (STARTED, chunk(7)), (STARTED, chunk(7), END)])
def test_a_request_whose_completions_have_not_all_ended_was_cancelled(events: tuple[GenerateEvent, ...]) -> None:
    assert counted(*events, n=2, outcome="cancelled").items() >= ENDED.items()

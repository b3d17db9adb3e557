"""What programs read of messages: every integer is a number, and what is zero or false is there."""

from mint_contracts.placement_pb2 import WaveExplanation, WaveOnEngine
from mint_contracts.training_pb2 import ForwardBackwardResponse, PolicyState, WaveProgress
from mint_gateway.as_json import as_json


def test_integers_compare_as_numbers_and_zeros_are_there() -> None:
    why = as_json(WaveExplanation(wanted=10, ready=9, engines=[WaveOnEngine(engine="e-0", wanted=10)]))
    assert why["ready"] < why["wanted"]
    assert (why["placed"], why["admitted"], why["missing"], why["message"]) == (0, False, [], "")
    assert why["engines"] == [{"engine": "e-0", "available": False, "wanted": 10, "ready": 0, "failed": 0}]
    assert as_json(PolicyState(life=(1 << 63) - 1))["life"] == (1 << 63) - 1, "exactly"


def test_a_field_with_presence_is_there_once_it_is_known() -> None:
    assert "reward_mean" not in as_json(WaveProgress())
    assert as_json(WaveProgress(reward_mean=0))["reward_mean"] == 0
    assert "taken_up" not in as_json(PolicyState())
    assert as_json(PolicyState(taken_up=0))["taken_up"] == 0


def test_maps_are_objects() -> None:
    assert as_json(ForwardBackwardResponse(tokens=3, metrics={"kl": 0.5}))["metrics"] == {"kl": 0.5}

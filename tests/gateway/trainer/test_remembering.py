"""Which policies' engines a gateway remembers."""

import pytest

from mint_contracts.training_pb2 import PolicyState
from mint_gateway.channels import Channels
from mint_gateway.choose import Now
from mint_gateway.trainer import policy_locations
from mint_gateway.trainer.policy_locations import PolicyLocator
from mint_gateway.view import Engine, MapView
from tests.gateway.scene import BASE, Scene


async def test_the_least_recently_called_policies_are_forgotten_first(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_locations, "REMEMBERED", 2)
    engine, channels = await scene.engine("e-0", trains=True), Channels()
    assert engine.trainer is not None
    engine.trainer.policies = {name: PolicyState(policy=name, life=1) for name in "abc"}
    view = MapView(BASE, engines={"e-0": Engine("e-0", engine.record(), alive=True, held={})})
    places = PolicyLocator(channels)
    for name in "abac":
        places.remember(BASE, name, await places.find(view, Now(), name, life=0))
    assert [(await places.find(view, Now(), name, life=0)).remembered for name in "abc"] == [True, False, True]
    await channels.close()

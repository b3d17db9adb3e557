"""What an engine has on a volume of its own is there for its next pod, and goes with the BaseModel."""

from collections.abc import Iterator

import pytest

from e2e.asking import NAMES
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World, base_model, wave

NAME = "keeper"
POD, CLAIM = f"{NAME}-0", f"cache-{NAME}-0"


@pytest.fixture
def keeper(world: World) -> Iterator[World]:
    """A base of one engine with a volume, beside the world's own."""
    base = base_model(NAME, engines=1)
    base["spec"]["engine"]["cache"] = {"size": "2Gi"}
    del base["spec"]["training"]
    world.kube.apply(base, NAMESPACE)
    world.kube.wait(f"basemodel/{NAME}", "Ready", NAMESPACE, timeout_s=600)
    yield world
    world.kube.kubectl("delete", "basemodel", NAME, "-n", NAMESPACE, "--timeout=60s")
    until("the volume to be gone", lambda: CLAIM not in _uids(world, "persistentvolumeclaim"))


def _uids(world: World, kind: str) -> dict[str, str]:
    return {each["metadata"]["name"]: str(each["metadata"]["uid"]) for each in world.kube.list(kind, NAMESPACE)}


def _packed(world: World) -> str:
    """The packed adapters on the volume, and when each was written."""
    asked = ("exec", POD, "-n", NAMESPACE, "--", "ls", "-l", "--full-time", "/mint/cache/adapters")
    return str(world.kube.kubectl(*asked))


def test_the_next_pod_of_an_engine_finds_what_the_one_before_had_fetched(keeper: World, waves: Waves) -> None:
    waves("kept", wave(NAMES, base=NAME))
    keeper.kube.wait("adapterwave/kept", "Ready", NAMESPACE)
    before, claim, packed = _uids(keeper, "pod")[POD], _uids(keeper, "persistentvolumeclaim")[CLAIM], _packed(keeper)
    assert packed.count(".mint") == len(NAMES)
    keeper.kube.kubectl("delete", "pod", POD, "-n", NAMESPACE, "--grace-period=0", "--force")
    until("another pod", lambda: _uids(keeper, "pod").get(POD) not in {None, before})
    keeper.kube.wait(f"pod/{POD}", "Ready", NAMESPACE, timeout_s=600)
    keeper.kube.wait("adapterwave/kept", "Ready", NAMESPACE)
    assert _packed(keeper) == packed, "none was fetched again"
    assert _uids(keeper, "persistentvolumeclaim")[CLAIM] == claim

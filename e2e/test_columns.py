"""What kubectl shows a person."""

from e2e.samples import TRAINED
from e2e.waiting import until
from e2e.world import NAMESPACE, Waves, World, wave


def test_get_shows_the_state_at_a_glance(world: World, waves: Waves) -> None:
    waves("shown", wave([adapter.name for adapter in TRAINED]))
    world.kube.wait("adapterwave/shown", "Ready", NAMESPACE)

    bases = world.kube.kubectl("get", "basemodels", "-n", NAMESPACE).splitlines()
    rows = world.kube.kubectl("get", "adapterwaves", "-n", NAMESPACE).splitlines()

    assert {"NAME", "PHASE", "READY", "AGE"} <= set(bases[0].split()), bases[0]
    assert {"NAME", "BASE", "PHASE", "READY", "AGE"} <= set(rows[0].split()), rows[0]
    assert "smollm2" in bases[1]
    shown = next(row for row in rows if row.startswith("shown"))
    assert "3/3" in shown
    assert "Ready" in shown


def test_one_category_shows_everything(world: World, waves: Waves) -> None:
    waves("listed", wave([TRAINED[0].name]))

    shown = world.kube.kubectl("get", "mint", "-n", NAMESPACE, "-o", "name").split()

    assert "basemodel.mint.dev/smollm2" in shown
    assert "adapterwave.mint.dev/listed" in shown


def test_describe_tells_why_a_wave_is_not_ready(world: World, waves: Waves) -> None:
    waves("puzzling", wave(["demo/never-written"]))
    until("a verdict", lambda: world.status("adapterwave", "puzzling").get("failures"))

    described = world.kube.kubectl("describe", "adapterwave", "puzzling", "-n", NAMESPACE)

    assert "demo/never-written" in described
    assert "NotFound" in described

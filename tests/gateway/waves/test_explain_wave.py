"""A wave's explanation over the wire: admission, copies, and what is missing."""

import json

import pytest

from mint_contracts import errors
from mint_contracts.records import BaseRecord, Failure, MapChange, Tier, WaveRecord
from mint_gateway.cli import parser
from tests.gateway.scene import BASE, STORE, Scene

WAVE = "demo/wave"
PIRATE, ROBOT = "demo/pirate", "demo/robot"
ADMITTED = WaveRecord(WAVE, "selector", 3, 1, Tier.DEVICE, slots=3, priority=5, weight=2, quota=6, admitted=True)
QUEUED = WaveRecord(
    "other/later",
    "names",
    4,
    1,
    Tier.DEVICE,
    slots=4,
    position=1,
    reason="WaitingForCapacity",
    message="needs 4 more",
)
ENDING = "expired at 2027-01-15T08:00:00Z (spec.serve.ttl 1h); its adapters are no longer held for it"
EXPIRED = WaveRecord(
    *("demo/past", "names", 2, 1, Tier.DEVICE), slots=2, weight=2, quota=6, reason="Expired", message=ENDING
)


async def write_waves(scene: Scene, *waves: WaveRecord) -> None:
    """Write the base, with room for 8 slots on 2 engines, and these waves on it."""
    record = BaseRecord(BASE, device_slots=4, engines_max=2)
    scene.versions[BASE] = await scene.writer.apply(BASE, MapChange(base=record, set_waves=waves))


async def test_an_admitted_wave_shows_where_its_copies_are_and_which_are_missing(scene: Scene) -> None:
    await write_waves(scene, ADMITTED, QUEUED)
    engines = [await scene.engine(f"e-{n}") for n in range(2)]
    await scene.place(PIRATE, "e-0")
    await scene.place(ROBOT, "e-1")
    await engines[0].hold(PIRATE, f"{STORE}/{PIRATE}", Tier.DEVICE)
    failure = Failure("CorruptFile", "truncated", terminal=True)
    await engines[1].hold(ROBOT, f"{STORE}/{ROBOT}", Tier.REMOTE, failure=failure)
    await scene.begin(*engines)
    why = await scene.client.explain_wave(WAVE)
    assert (why.base_model, why.chosen_by, why.admitted, why.priority) == (BASE, "selector", True, 5)
    assert why.phase == "Failed", "one copy fails until its file changes"
    assert (why.wanted, why.placed, why.ready, why.missing_count) == (3, 2, 1, 2)
    assert [(each.engine, each.wanted, each.ready, each.failed) for each in why.engines] == [
        ("e-0", 1, 1, 0),
        ("e-1", 1, 0, 1),
    ]
    assert [(each.adapter, each.engine, each.why) for each in why.missing] == [
        (ROBOT, "e-1", "CorruptFile: truncated")
    ]
    assert why.decided_by == f"admitted; 1 copies failed, first {ROBOT} on e-1"
    assert (why.capacity.slots_held, why.capacity.slots_max, why.capacity.engines) == (3, 8, 2)


async def test_a_wave_that_waits_shows_the_queue_and_who_holds_what(scene: Scene) -> None:
    await write_waves(scene, ADMITTED, QUEUED)
    await scene.begin()
    why = await scene.client.explain_wave("other/later")
    assert (why.admitted, why.position, why.queue, why.reason) == (False, 1, 1, "WaitingForCapacity")
    assert (why.wanted, why.placed, why.missing_count) == (4, 0, 0)
    assert why.decided_by == "not admitted (WaitingForCapacity): needs 4 more"
    assert [(each.namespace, each.weight, each.quota, each.slots_held) for each in why.namespaces] == [
        ("demo", 2, 6, 3),
        ("other", 1, 0, 0),
    ]


async def test_a_wave_that_expired_says_when_and_by_what_and_has_no_copies_though_another_has_its_adapters(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    await write_waves(scene, ADMITTED, EXPIRED)
    await scene.place(PIRATE, "e-0")
    await scene.begin()
    why = await scene.client.explain_wave("demo/past")
    assert (why.admitted, why.position, why.reason, why.message) == (False, 0, "Expired", ENDING)
    assert (why.wanted, why.placed, why.missing_count, why.capacity.slots_held) == (0, 0, 0, 3)
    assert [(each.slots_held, each.waves_admitted, each.waves_waiting) for each in why.namespaces] == [(3, 1, 0)]
    options = parser().parse_args(["wave", "explain", "-n", "demo", "past", "--gateway", scene.target])
    assert await options.run(options) == 0
    assert f"decided by not admitted (Expired): {ENDING}" in " ".join(capsys.readouterr().out.split())


async def test_copies_that_are_colder_than_asked_for_or_on_silent_engines_are_missing(scene: Scene) -> None:
    await write_waves(scene, ADMITTED)
    engine = await scene.engine("e-0")
    await scene.place(PIRATE, "e-0")
    await scene.place(ROBOT, "e-9")
    await engine.hold(PIRATE, f"{STORE}/{PIRATE}", Tier.DISK)
    await scene.begin(engine)
    why = await scene.client.explain_wave(WAVE)
    assert {each.adapter: each.why for each in why.missing} == {
        PIRATE: "loading; on Disk now",
        ROBOT: "its engine has not reported",
    }


async def test_a_policy_that_trains_is_not_said_to_load(scene: Scene) -> None:
    await write_waves(scene, WaveRecord(WAVE, "train", 1, 1, Tier.DEVICE, slots=1, admitted=True))
    engine = await scene.engine("e-0")
    await scene.place(PIRATE, "e-0")
    await engine.hold(PIRATE, f"{STORE}/{PIRATE}", Tier.HOST)
    await scene.begin(engine)
    why = await scene.client.explain_wave(WAVE)
    assert [each.why for each in why.missing] == ["training, or loading what it published; on Host now"]
    assert why.decided_by == "admitted; `mint wave watch` shows its policies"
    failure = Failure("CorruptFile", "truncated", terminal=True)
    await engine.hold(PIRATE, f"{STORE}/{PIRATE}", Tier.REMOTE, failure=failure)
    await scene.seen(engine)
    why = await scene.client.explain_wave(WAVE)
    assert why.decided_by == f"admitted; 1 copies failed, first {PIRATE} on e-0"


async def test_a_wave_that_nobody_knows_says_so(scene: Scene) -> None:
    await write_waves(scene)
    await scene.begin()
    with pytest.raises(errors.NotFound, match="is not a wave over any base model that is served; see kubectl get"):
        await scene.client.explain_wave("demo/none")
    with pytest.raises(errors.InvalidRequest):
        await scene.client.explain_wave("nonsense")


async def test_the_command_line_shows_it(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    await write_waves(scene, ADMITTED, QUEUED)
    await scene.place(PIRATE, "e-0")
    await scene.begin()
    options = parser().parse_args(["wave", "explain", "-n", "demo", "wave", "--gateway", scene.target])
    assert await options.run(options) == 0
    out = capsys.readouterr().out
    assert "3 adapters by selector x 1 on Device" in out
    assert "3 of 8 slots held by 1 waves" in out
    assert "its engine has not reported" in out
    options = parser().parse_args(["wave", "explain", "-o", "json", "demo/wave", "--gateway", scene.target])
    await options.run(options)
    why = json.loads(capsys.readouterr().out)
    assert (why["wanted"], why["placed"], why["ready"], why["position"], why["admitted"]) == (3, 1, 0, 0, True)
    assert why["engines"] == [{"engine": "e-0", "available": False, "wanted": 1, "ready": 0, "failed": 0}]
    options = parser().parse_args(["wave", "explain", "other/later", "--gateway", scene.target])
    await options.run(options)
    assert "position 1 of 1" in capsys.readouterr().out

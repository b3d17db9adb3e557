"""A wave's inputs, manifests and config maps: waited for before training begins, and not needed afterwards."""

from typing import Any

import pytest
from msgspec import structs

from mint_contracts.records import Failure
from mint_contracts.resources import Serve
from mint_contracts.training import Algorithm, ConfigMapKey, Dataset, Loss, Policies, Policy
from mint_contracts.training_records import Order, Stage
from mint_operator.planning.refusal import Refusal
from mint_operator.planning.snapshot import Inputs
from mint_operator.training.fit import manifest_of
from tests.operator.training_worlds import STEPS, base, condition, engines, planned, published, training_wave


@pytest.mark.parametrize("unread", [{}, {"uid-w": Failure("SourceNotFound", "it is gone", terminal=True)}])
def test_a_wave_goes_on_as_it_was_while_its_manifest_can_not_be_read(unread: dict[str, Failure]) -> None:
    read = {"uid-w": (Policy(name="team/a"), Policy(name="team/b", rank=4), Policy(name="team/c"))}
    fields: dict[str, Any] = {"policies": Policies(manifest="s3://b/p.jsonl"), "admission": "Elastic"}
    wave = training_wave("w", serve=Serve(residency="Host"), **fields)
    world = planned(base(slots=2), [wave], engines(1), inputs=Inputs(manifests=read))
    world.hear(Stage.RUNNING, 3, published=published(3))
    before, placed = world.leases, world.placements
    assert list(before) == ["team/a", "team/b"]
    world.inputs = Inputs(manifests=unread)
    assert world.step().training == {}, "no history of rewards is forgotten, either"
    assert (world.status("w").phase, world.leases, world.placements) == ("Training", before, placed)
    world.hear(Stage.COMPLETE, STEPS, "team/a", published=published(STEPS))
    world.start_anew(2)
    world.step()
    assert list(world.leases) == ["team/b"], "nobody knows by what settings c is to be trained"
    assert condition(world, "w", "Ready")[1] == (unread["uid-w"].reason if unread else "ManifestUnread")
    assert world.leases["team/b"][1].settings == before["team/b"][1].settings
    world.inputs = Inputs(manifests=read)
    world.step()
    assert list(world.leases) == ["team/b", "team/c"]


def test_a_wave_keeps_the_policies_that_it_began_with_whatever_its_manifest_says_since() -> None:
    first = (Policy(name="team/a"), Policy(name="team/b", rank=4), Policy(name="team/c"))
    wave = training_wave(
        "w", policies=Policies(manifest="s3://b/p.jsonl"), admission="Elastic", serve=Serve(residency="Host")
    )
    world = planned(base(slots=2), [wave], engines(1), inputs=Inputs(manifests={"uid-w": first}))
    world.hear(Stage.RUNNING, 3, published=published(3))
    before, placed = world.leases, world.placements
    for others, told in (
        ((Policy(name="team/x"),), "ManifestRewritten"),
        ((Policy(name="team/x"), Policy(name="team/b", rank=8), Policy(name="team/c", rank=2)), ""),
    ):
        world.inputs = Inputs(manifests={"uid-w": others})
        assert world.step().training == {}
        assert (world.leases, world.placements) == (before, placed)
        found = manifest_of(world.waves[0], world.inputs, world.training)
        assert (found.reason if isinstance(found, Refusal) else "") == told
        status, reason, message = condition(world, "w", "Ready")
        assert (status, reason) == ("False", told or "PoliciesLoading")
        assert message.startswith("1 of 3 policies are not training yet")
        assert message.endswith("restore those lines, or create a new wave") is bool(told)
    world.complete()
    assert world.leases["team/c"][1].settings.rank == 2, "which had not begun"


def test_each_policy_is_leased_with_its_own_loss_beside_the_waves() -> None:
    own = Loss(type="grpo", clip_high=0.3)
    read = {"uid-w": (Policy(name="team/a", loss=own), Policy(name="team/b"))}
    wave = training_wave("w", policies=Policies(manifest="s3://b/p.jsonl"), loss=Loss(type="cispo"))
    world = planned(base(), [wave], engines(1), inputs=Inputs(manifests=read))
    assert {name: lease.settings.loss for name, (_, lease) in world.leases.items()} == {"team/a": own, "team/b": None}
    assert world.training.training["team/w"].train.loss == Loss(type="cispo")


@pytest.mark.parametrize(
    ("loss", "algorithm", "why"),
    [
        (Loss(type="cross_entropy"), "GRPO", "policy team/b has loss cross_entropy, which GRPO does not support"),
        (Loss(), "SFT", "policy team/b has a loss, but SFT uses its own"),
        (
            Loss("ppo", importance_sampling_level="sequence"),
            "GRPO",
            "policy team/b has loss.importanceSamplingLevel sequence with type ppo, which only has level token",
        ),
        (Loss(ratio_low=3, ratio_high=2), "GRPO", "policy team/b has loss.ratioLow 3 above ratioHigh 2; lower it"),
    ],
)
def test_a_loss_of_a_manifest_by_which_nothing_can_be_learnt_is_refused_before_anything_begins(
    loss: Loss, algorithm: Algorithm, why: str
) -> None:
    read = {"uid-w": (Policy(name="team/a"), Policy(name="team/b", loss=loss))}
    wave = training_wave("w", policies=Policies(manifest="s3://b/p.jsonl"), algorithm=algorithm)
    world = planned(base(), [wave], engines(1), inputs=Inputs(manifests=read))
    assert (world.leases, condition(world, "w", "Complete")[1]) == ({}, "InvalidRequest")
    assert why in condition(world, "w", "Complete")[2].replace(":", "")


def test_a_wave_that_has_not_begun_waits_for_its_manifest() -> None:
    world = planned(base(), [training_wave("w", policies=Policies(manifest="s3://b/p.jsonl"))], engines(1))
    assert (world.status("w").phase, world.leases) == ("Queued", {})
    assert condition(world, "w", "Admitted")[1] == "ManifestUnread"


def test_config_maps_come_to_the_engines_as_lines() -> None:
    wave = training_wave("w", dataset=Dataset(config_map=ConfigMapKey("lessons")))
    marks = "".join(chr(each) for each in (0x85, 0x2028, 0x2029, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E))
    texts = {"team": {"lessons": {"data.jsonl": f'{{"prompt": "a"}}\n\n{{"prompt": "b{marks}"}}\r\n'}}}
    world = planned(base(), [wave], engines(1), inputs=Inputs(config_maps=texts))
    dataset = world.training.training["team/w"].train.dataset
    assert dataset == Dataset(lines=['{"prompt": "a"}', "", f'{{"prompt": "b{marks}"}}']), "as a file's lines"
    assert {lease.settings.dataset for _, lease in world.leases.values()} == {None}


def test_a_config_map_that_cannot_be_read_now_fails_nobody() -> None:
    wave = training_wave("w", dataset=Dataset(config_map=ConfigMapKey("lessons")))
    unread = Failure("SourceUnavailable", "could not be read (etcd is away); retrying", terminal=False)
    world = planned(base(), [wave], engines(1), inputs=Inputs(config_maps={"team": {"lessons": unread}}))
    assert world.status("w").phase == "Queued"
    assert condition(world, "w", "Complete")[1] == "SourceUnavailable"
    world.inputs = Inputs(config_maps={"team": {"lessons": {"data.jsonl": '{"prompt": "a"}'}}})
    world.step()
    assert world.leases
    world.inputs = Inputs(config_maps={"team": {"lessons": unread}})
    before = world.training.training["team/w"]
    world.step()
    assert world.training.training["team/w"] == before


def test_a_wave_that_has_begun_needs_its_config_map_no_more() -> None:
    wave = training_wave("w", dataset=Dataset(config_map=ConfigMapKey("lessons")))
    texts = {"team": {"lessons": {"data.jsonl": '{"prompt": "a"}'}}}
    world = planned(base(), [wave], engines(1), inputs=Inputs(config_maps=texts))
    before, leases = world.training.training["team/w"].train.dataset, world.leases
    world.inputs = Inputs(config_maps={})
    world.step()
    assert world.training.training["team/w"].train.dataset == before
    assert world.leases == leases


@pytest.mark.parametrize(
    "texts",
    [{}, {"team": {"own": {"data.jsonl": "\n"}}}, {"team": {"own": {"data.jsonl": '{"prompt": "b"}'}}}],
    ids=["deleted", "blank", "edited"],
)
@pytest.mark.parametrize("stage", [None, Stage.COMPLETE])
def test_a_policy_that_has_begun_needs_its_own_config_map_no_more(texts: Any, stage: Stage | None) -> None:
    own = Policies(list=(Policy(name="acme/a", dataset=Dataset(config_map=ConfigMapKey("own"))),))
    given = {"team": {"own": {"data.jsonl": '{"prompt": "a"}'}}}
    world = planned(base(), [training_wave("w", policies=own)], engines(1), inputs=Inputs(config_maps=given))
    if stage is not None:
        world.hear(stage, STEPS, published=published(STEPS))
        world.step()
    before = world.leases, dict(world.placements), world.status("w").phase
    world.inputs = Inputs(config_maps=texts)
    world.step()
    world.step()
    assert (world.leases, dict(world.placements), world.status("w").phase) == before
    assert world.leases or world.placements


OWN = Policies(list=tuple(Policy(name=f"acme/{n}", dataset=Dataset(config_map=ConfigMapKey(n))) for n in "ab"))
SAYS = {"data.jsonl": '{"prompt": "a"}'}
AWAY = Failure("SourceUnavailable", "could not be read (etcd is away); retrying", terminal=False)


@pytest.mark.parametrize("text", [{}, {"b": AWAY}], ids=["deleted", "unread"])
def test_a_policy_that_has_begun_goes_on_without_the_examples_of_one_that_has_not(text: Any) -> None:
    wave = training_wave("w", policies=OWN, admission="Elastic", serve=Serve(residency="Host"))
    given = Inputs(config_maps={"team": dict.fromkeys("ab", SAYS)})
    world = planned(base(slots=1), [wave], engines(1), inputs=given)
    world.hear(Stage.RUNNING, 1)
    before = world.leases
    assert list(before) == ["acme/a"]
    world.inputs = Inputs(config_maps={"team": text})
    world.step()
    assert (world.leases, world.status("w").phase) == (before, "Training")
    world.complete()
    assert "acme/b" not in world.leases
    _, reason, message = condition(world, "w", "Ready")
    assert reason == ("SourceUnavailable" if text else "SourceNotFound")
    assert "1 of 2 policies are not training yet; ConfigMap b: " in message
    world.inputs = given
    world.step()
    assert world.leases["acme/b"][1].order is Order.RUN


@pytest.mark.parametrize("text", ["", '{"prompt": "b"}'], ids=["deleted", "edited"])
@pytest.mark.parametrize("untrained", [False, True], ids=["restarted", "without a store meanwhile"])
def test_a_policy_that_resumes_on_a_restarted_engine_has_the_examples_that_it_began_with(
    text: str, untrained: bool
) -> None:
    wave = training_wave("w", policies=OWN, admission="Elastic", serve=Serve(residency="Host"))
    given = Inputs(config_maps={"team": dict.fromkeys("ab", SAYS)})
    world = planned(base(slots=1), [wave], engines(1), inputs=given)
    world.hear(Stage.RUNNING, 1)
    world.change("w", paused=True)
    world.step()
    world.hear(Stage.PAUSED, 1)
    world.start_anew(2)
    world.step()
    assert not world.leases
    world.inputs = Inputs(config_maps={"team": {name: {"data.jsonl": text} for name in "ab"}} if text else {})
    if untrained:
        able, world.base = world.base, base(slots=1, store=False)
        world.step()
        world.base = able
    world.step()
    world.change("w", paused=False)
    world.step()
    assert list(world.leases) == ["acme/a"]
    assert world.leases["acme/a"][1].settings.dataset == Dataset(lines=[SAYS["data.jsonl"]])
    world.complete()
    others = [lease.settings.dataset for name, (_, lease) in world.leases.items() if name == "acme/b"]
    assert others == ([Dataset(lines=[text])] if text else []), "which had not begun"


def test_a_complete_policy_takes_more_steps_without_its_config_map() -> None:
    given = Inputs(config_maps={"team": dict.fromkeys("ab", SAYS)})
    world = planned(base(), [training_wave("w", policies=OWN)], engines(1), inputs=given)
    world.complete()
    world.start_anew(2)
    world.inputs = Inputs()
    world.step()
    assert not world.leases
    world.change("w", steps=STEPS + 1)
    world.step()
    assert {name: lease.settings.dataset for name, (_, lease) in world.leases.items()} == dict.fromkeys(
        ("acme/a", "acme/b"), Dataset(lines=[SAYS["data.jsonl"]])
    )


@pytest.mark.parametrize(
    "fields",
    [{"policies": OWN}, {"dataset": Dataset(config_map=ConfigMapKey("a"))}],
    ids=["policies' own", "the wave's"],
)
def test_a_wave_that_has_begun_keeps_its_examples_while_its_base_refuses_it(fields: dict[str, Any]) -> None:
    given = Inputs(config_maps={"team": dict.fromkeys("ab", SAYS)})
    world = planned(base(), [training_wave("w", 2, **fields)], engines(1), inputs=given)
    world.hear(Stage.RUNNING, 1)
    before = world.leases, world.training.training["team/w"].train.dataset
    able = world.base
    limits = structs.replace(able.spec.adapters, max_rank=4)
    world.base = structs.replace(able, spec=structs.replace(able.spec, adapters=limits))
    world.step()
    assert {lease.order for _, lease in world.leases.values()} == {Order.PAUSE}
    world.base, world.inputs = able, Inputs()
    world.step()
    assert (world.leases, world.training.training["team/w"].train.dataset) == before

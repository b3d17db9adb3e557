"""A GPU's memory: what is on it before anything is loaded, and what base, slots and cache leave to policies."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import GlmMoeDsaConfig

from mint_contracts import training_pb2 as pb
from mint_contracts.byte_counts import in_units
from mint_contracts.errors import CapacityExceeded, Overloaded
from mint_contracts.records import Failure
from mint_contracts.training_records import Stage
from mint_engine.model.device_memory import DeviceMemory, read_memory
from mint_engine.policies import patience
from mint_engine.preflight import check_small_files
from mint_engine.residency.host import HostTier
from mint_engine.residency.policy_device import RESERVE, PolicyDevice
from mint_engine.residency.policy_memory import Needs, PolicyMemory
from mint_engine.serve import listen
from mint_engine.training.generic_pass import kept_of
from mint_engine.training.policy import PolicySettings
from tests.engine.device_double import CUDA, Seen, standing_in
from tests.engine.families import SPARSE, make_model
from tests.engine.running import running, save_base, settings_for
from tests.engine.training.calling import called, lesson
from tests.engine.training.calling import refused as refusal_of
from tests.engine.training.frontier_families import base_over
from tests.engine.training.training_engine import Gate, assignment, hold_updates, train, training
from tests.waiting import until

MEMORY, OTHERS, ROW = 1000 << 20, 200 << 20, 10 << 20


@pytest.fixture(autouse=True)
def _few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted programs take a millisecond each: let one take many rows."""
    monkeypatch.setattr("mint_engine.gpu.lora.FEW", 1)


@pytest.fixture
def device() -> Iterator[Seen]:
    with standing_in() as seen:
        seen.memory = MEMORY
        yield seen


def room_on(taken: int = 0, activations: int = 0) -> tuple[PolicyMemory, PolicyDevice, torch.Tensor]:
    resident = torch.zeros(taken, dtype=torch.uint8, device="cuda")
    found = PolicyDevice(CUDA, lambda rows: rows * activations, 1)
    return PolicyMemory(HostTier(1 << 30), lambda _: None, device=found), found, resident


def test_memory_is_told_with_what_other_processes_take(device: Seen) -> None:
    device.others = OTHERS
    here = torch.zeros(1000, device="cuda")
    _view = here[10:]
    assert read_memory(CUDA) == DeviceMemory(MEMORY, here.nbytes, MEMORY - OTHERS - here.nbytes)


def test_what_torch_keeps_for_later_tensors_is_free(device: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    here, kept = torch.zeros(1000, device="cuda"), 1 << 20
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: here.nbytes + kept)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (MEMORY - here.nbytes - kept, MEMORY))
    assert read_memory(CUDA) == DeviceMemory(MEMORY, here.nbytes, MEMORY - here.nbytes)


def test_policies_may_take_what_is_left_less_a_reserve(device: Seen) -> None:
    """While others on the GPU take more, less of it; what policies have taken themselves stays in their budget."""
    device.others = OTHERS
    _, budget, _resident = room_on(taken=300 << 20, activations=50 << 20)
    left = MEMORY - OTHERS - (300 << 20) - (50 << 20) - int(RESERVE * MEMORY)
    assert left - MEMORY // 1024 < budget.budget == budget.most <= left
    policy = torch.zeros(10 << 20, device="cuda")
    assert budget.budget == budget.most
    device.others += 100 << 20
    assert budget.budget <= left - (100 << 20)
    device.others += MEMORY
    assert budget.budget == 0
    assert policy.device == CUDA


def test_policies_have_what_the_fullest_gpu_of_several_ranks_leaves(device: Seen) -> None:
    activations, others = 50 << 20, 150 << 20
    budget = PolicyDevice(CUDA, lambda rows: rows * activations, 1, others)
    assert 0 <= others - activations - budget.budget < MEMORY // 1024
    device.others = MEMORY - int(RESERVE * MEMORY) - (90 << 20)
    assert 0 <= (90 << 20) - activations - budget.budget < MEMORY // 1024, "the first rank's, once that is less"
    assert PolicyDevice(CUDA, lambda _: activations, 1, activations - 1).budget == 0


def test_an_update_is_refused_if_the_gpu_cannot_keep_what_it_needs_of_its_longest_example(device: Seen) -> None:
    """The whole example is computed at once. What other updates keep meanwhile is free by the time it begins."""
    room, budget, _ = room_on(activations=ROW)
    room.take("policy 'p'", Needs(0, 10, 5, device=30 * ROW))
    with room.updating("policy 'p'", 59):
        pass
    with pytest.raises(CapacityExceeded) as never, room.updating("policy 'p'", 61):
        pass
    assert str(never.value).startswith(
        "policy 'p': has an example of 61 tokens, of which an update keeps 600 MiB more in GPU memory than is set "
        f"aside, beside the 300 MiB that the policy takes; base, slots and cache leave {in_units(budget.most)} "
        "for both; give shorter examples (in a wave, lower sampling.maxTokens), lower kvCacheMemory"
    )
    room.take("other", Needs(0, 10, 5, device=40 * ROW))
    with room.updating("other", 19):
        _kept = torch.zeros(18 * ROW, dtype=torch.uint8, device="cuda")
        with room.updating("policy 'p'", 19):
            pass
        with (
            pytest.raises(Overloaded, match=r"other policies have 400 MiB of .*; retry later") as now,
            room.updating("policy 'p'", 21),
        ):
            pass
    assert now.value.retry_after_s
    device.others = MEMORY
    with room.updating("policy 'p'", 1):
        pass


def test_policies_keep_room_for_the_longest_example_of_any_of_them_so_that_no_update_waits_for_room(
    device: Seen,
) -> None:
    room, _, _ = room_on(activations=ROW)
    for name in ("one", "two"):
        room.take(name, Needs(0, 10, 5, device=20 * ROW, longest=41))
    with pytest.raises(Overloaded, match=r"updates may keep 400 MiB of their longest examples; .*maxTokens"):
        room.take("three", Needs(0, 10, 5, device=20 * ROW, longest=1))
    for name in ("one", "two"):
        with room.updating(name, 41):
            pass
    room.leave("one")
    room.take("three", Needs(0, 10, 5, device=20 * ROW, longest=49))


def test_a_policy_whose_examples_may_be_longer_than_fits_trains_without_others(device: Seen) -> None:
    """Most completions are shorter than they may be."""
    room, _, _ = room_on(activations=ROW)
    room.take("one", Needs(0, 10, 5, device=20 * ROW, longest=1000))
    with pytest.raises(Overloaded):
        room.take("two", Needs(0, 10, 5, device=ROW))
    with room.updating("one", 69):
        pass
    with pytest.raises(CapacityExceeded), room.updating("one", 71):
        pass


def test_a_failed_gpu_has_the_budget_that_it_had(device: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    _, budget, _resident = room_on()
    before = budget.budget
    monkeypatch.setattr(torch.cuda, "mem_get_info", fail)
    assert budget.budget == before > 0


async def test_a_policy_takes_room_of_both_memories_or_of_none(device: Seen) -> None:
    room, budget, _ = room_on()
    most = budget.most
    room.take("one", Needs(0, 10, 5, device=most - 100))
    with pytest.raises(Overloaded) as refused:
        room.take("two", Needs(0, 10, 5, device=101))
    assert refused.value.retry_after_s
    assert refused.value.message.startswith(
        f"needs 101 bytes of GPU memory; 1 other policies have {in_units(most - 100)} of {in_units(most)}"
    )
    assert room.lasting == 10, "and nothing of the host's"
    room.take("two", Needs(0, 10, 5, device=100))
    room.leave("one")
    with pytest.raises(
        CapacityExceeded, match=r"needs .* of GPU memory; base, slots and cache leave .* for policies"
    ):
        room.take("three", Needs(0, 10, 5, device=most + 1))
    room.take("two", Needs(0, 10, 5, device=most))
    device.others = OTHERS
    room.take("two", Needs(0, 10, 5, device=most))  # what is here already stays
    room.take("two", Needs(0, 10, 5, device=most - 1))
    with pytest.raises(Overloaded):
        room.take("two", Needs(0, 10, 5, device=most))


def test_a_policy_for_which_others_left_no_room_at_the_start_only_waits_once_they_have_ended(device: Seen) -> None:
    device.others = OTHERS
    room, budget, _resident = room_on()
    at_start = budget.budget
    device.others = 0
    room.take("one", Needs(0, 10, 5, device=budget.budget))
    with pytest.raises(Overloaded):
        room.take("two", Needs(0, 10, 5, device=at_start + 1))


def test_a_base_that_does_not_fit_is_refused_before_its_weights_are_read(device: Seen, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    settings = settings_for(base, device="cuda")
    check_small_files(settings, base, "base b")
    (base / "model.safetensors").unlink()
    device.memory, device.others = 8 << 20, 3 << 20
    with pytest.raises(CapacityExceeded) as refused:
        check_small_files(settings, base, "base b")
    assert str(refused.value).startswith("base b: needs at least ")
    assert "of a GPU's memory (398592 bytes for weights, 712704 bytes for slots, " in str(refused.value)
    assert "4 MiB for the cache), and cuda:0 has 5 MiB of 8 MiB free; use larger GPUs" in str(refused.value)


async def test_what_is_checked_before_is_what_is_on_the_gpu_then(device: Seen, tmp_path: Path) -> None:
    """Weights, slots and cache, but for the small tensors beside them."""
    base = save_base(tmp_path / "base")
    settings = settings_for(base, device="cuda")
    async with running(base, device="cuda"):
        gc.collect()
        taken = device.allocated
    gc.collect()
    device.memory = int(taken * 0.9)
    with pytest.raises(CapacityExceeded):
        check_small_files(settings, base, "base b")
    device.memory = int(taken * 1.1)
    check_small_files(settings, base, "base b")


async def test_a_base_that_fills_the_gpu_while_it_is_loaded_is_told_so(
    device: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base")

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB\nand more")

    monkeypatch.setattr("mint_engine.build.Slots", full)
    server = await listen(settings_for(base, device="cuda"), "tiny-0", 0)
    try:
        with pytest.raises(
            CapacityExceeded, match=r"does not fit its GPU \(.*: CUDA out of memory. Tried .* 20 GiB\); "
        ):
            await server.load(base, lambda *_: pytest.fail("it is not loaded"))
    finally:
        await server.drain(5)


async def test_as_many_policies_train_on_a_gpu_as_fit_it(
    device: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one waits without a slot, and trains once another has ended."""
    monkeypatch.setattr(patience, "LONGEST_RETRY_S", 0.1)
    monkeypatch.setattr("mint_engine.model.generic.find_gpu_kernels", lambda *_, **__: None)  # they are interpreted
    base, names = save_base(tmp_path / "base"), [f"acme/{n}" for n in range(3)]
    device.memory = 64 << 20
    async with training(base, tmp_path, train(steps=2), device="cuda") as scene:
        needs, slots = scene.context.step_thread.maker.needs("any", PolicySettings(4)), scene.residency.slots
        budget = scene.residency.lending.room.device
        assert budget is not None
        assert needs.own == 0 < needs.device
        device.others = budget.budget - 2 * needs.device - device.memory // 1024

        def failures() -> list[Failure]:
            return [each.failure for each in scene.roster.progress().values() if each.failure]

        with Gate() as updating:
            hold_updates(scene, updating)
            scene.want(*(assignment(name) for name in names))
            await until(lambda: bool(failures()))
            (failure,) = failures()
            assert (failure.reason, failure.terminal) == ("Overloaded", False)
            assert f"needs {in_units(needs.device)} of GPU memory; 2 other policies have" in failure.message
            assert slots.count - len(slots.free) == 2
        ended = await scene.ended(*names)
        assert {each.stage for each in ended.values()} == {Stage.COMPLETE}


async def test_an_engine_reports_what_its_gpu_has_for_policies(device: Seen, tmp_path: Path) -> None:
    """And what those of Trainer calls take of it."""
    base = save_base(tmp_path / "base")
    async with called(base, tmp_path, device="cuda") as (scene, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="acme/one", rank=4))
        needs = scene.context.step_thread.maker.needs("any", PolicySettings(4))
        room, memory = scene.server.register.room, scene.residency.lending.room.device
        assert room is not None
        assert room.device is not None
        assert memory is not None
        assert room.device.budget == memory.budget > 0
        assert room.device.calls == needs.device == 4 * room.device.own * sum(room.weights.values())
        assert (room.own, room.calls, room.shared) == (0, 0, {})
        device.others = OTHERS
        assert memory.budget < room.device.budget


async def test_calls_with_an_example_that_the_gpu_cannot_keep_are_refused_and_others_learn(
    device: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mint_engine.serve.PIECE_ROWS", 2)
    monkeypatch.setattr("mint_engine.serve.kept_of", lambda _base: lambda rows: rows * (16 << 20))
    device.memory = 64 << 20
    base = save_base(tmp_path / "base")
    async with called(base, tmp_path, device="cuda") as (_, stub):
        await stub.CreatePolicy(pb.CreatePolicyRequest(policy="acme/one", rank=4))
        error = await refusal_of(stub.ForwardBackward(lesson("acme/one", 1)))
        assert isinstance(error, CapacityExceeded)
        assert "has an example of 4 tokens, of which an update keeps 32 MiB more in GPU memory" in str(error)
        shorter = pb.Example(tokens=[5, 6, 7], targets=[6, 7, 8], weights=[0, 1, 1])
        assert (await stub.ForwardBackward(lesson("acme/one", 1, examples=[shorter]))).tokens == 2
        masked = pb.Example(tokens=[5] * 50, targets=[6] * 50, weights=[0, 1, 1] + [0] * 47)
        assert (await stub.ForwardBackward(lesson("acme/one", 2, examples=[masked]))).tokens == 2


def test_what_indexers_hand_on_is_kept_too_once_they_choose() -> None:
    """By those alone whose choice the next layer shares, beside that of the layer in progress."""
    kinds = ["full", "shared", "shared", "full", "full"]
    config = GlmMoeDsaConfig(**(SPARSE | {"num_hidden_layers": 5, "indexer_types": kinds, "index_topk": 16}))
    kept = kept_of(base_over(make_model(config, torch.bfloat16)))
    assert kept(16) == 16 * 5 * SPARSE["hidden_size"] * 2
    assert kept(17) == 17 * 5 * SPARSE["hidden_size"] * 2 + 2 * 17 * 17

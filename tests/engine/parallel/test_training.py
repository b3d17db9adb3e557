"""An engine of several ranks answers as one of a single rank does, and its policies learn the same.

For every family: in real processes, over shares of the base.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mint_contracts.errors import EngineUnavailable
from mint_contracts.training import Loss
from mint_engine.parallel.shared_memory import PATIENCE_S
from mint_engine.training import work as works
from mint_engine.training.example import PolicyBatch
from mint_engine.training.head import HEAD_ROWS
from mint_engine.training.pieces import plan_pieces
from mint_engine.training.work import Share
from tests.engine import saved_families
from tests.engine.families import BY_MODULES, ROUTED
from tests.engine.parallel.learning import NAMES, Learning, engine
from tests.engine.parallel.playing import TURNS, draw_adapter, play
from tests.engine.parallel.processes import followers
from tests.engine.running import save_base
from tests.engine.training.at_once import finish
from tests.engine.training.frontier_families import Merged, reference
from tests.engine.training.scene import groups, learn
from tests.waiting import until

LLAMAS: dict[str, dict[str, Any]] = {
    "llama of uneven heads": {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32},
    "llama of one key/value head": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32},
}
LEAN = (
    *LLAMAS, "smollm2", "qwen3", "phi3", "seed_oss", "mixtral", "qwen3_moe", "glm4_moe", "deepseek_v3",
    "deepseek_v3_plain_query", "kimi_k2", "mistral", "gemma2", "gemma3_seeing", "gpt_oss", "dots1", "exaone4",
    "granite", "deepseek_v32", "glm_5", "ernie4_5", "ernie4_5_moe", "granitemoe", "hunyuan", "hunyuan_moe",
    "olmo2", "olmo3_one_key", "minimax_m2",
)  # fmt: skip
MODULES = {f"{family} by modules": family for family in ("olmo2", "olmo3_one_key", "minimax_m2", "afmoe")}
REPLAYED = ("mixtral", *ROUTED, "minimax_m2 by modules")
CLOSE = {"float32": 1e-4, "bfloat16": 0.15}
ALIKE = {"float32": 1e-5, "bfloat16": 0.1}  # of answers; rounding may send a token to another expert
ROUNDED = [(family, "bfloat16") for family in ("llama of uneven heads", "qwen3_moe")]
MIXED = [
    ("llama of uneven heads", "float32"), *ROUNDED,
    *((family, "bfloat16") for family in ("gpt_oss", "minimax_m2", "minimax_m2 by modules")),
]  # fmt: skip
EXACT = [(family, "float32") for family in (*LEAN, *MODULES)]


@dataclass(frozen=True)
class Kind:
    """A base that two ranks share."""

    family: str
    dtype: str
    base: Path
    two: Learning


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kind]:
    family, dtype = request.param
    base = save(family, tmp_path_factory.mktemp("base"))
    with engine(base, 2, dtype) as two:
        check_compute(two, family)
        yield Kind(family, dtype, base, two)


@pytest.fixture(scope="module")
def one(kind: Kind) -> Iterator[Learning]:
    """The same base on a single rank."""
    with engine(kind.base, 1, kind.dtype) as found:
        check_compute(found, kind.family)
        yield found


def check_compute(each: Learning, family: str) -> None:
    assert each.trainer.compute.startswith("lean") is (family in LEAN)
    assert each.generation.compute.startswith("lean") is (family in LEAN)


def save(family: str, folder: Path, **changes: Any) -> Path:
    if family in LLAMAS:
        return save_base(folder, hidden_size=96, **LLAMAS[family])
    if family in MODULES:
        return saved_families.save_base(MODULES[family], folder, **changes, **BY_MODULES)
    return saved_families.save_base(family, folder, **changes)


def far(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", [*EXACT, *ROUNDED], indirect=True, ids=", ".join)
def test_answers_are_those_of_one_rank(kind: Kind, one: Learning) -> None:
    """With adapters on every linear of the layers: attention, indexer, networks, shared and routed experts."""
    shared, whole = answers(kind.two), answers(one)
    assert far(shared, whole) < ALIKE[kind.dtype]
    if kind.dtype == "float32":
        assert torch.equal(shared.argmax(-1), whole.argmax(-1))


def answers(each: Learning) -> torch.Tensor:
    """Logits of requests for two adapters and the bare base, then with one adapter replaced and the other cleared."""
    for slot, rank in enumerate((4, 9)):
        each.slots.load(slot, draw_adapter(each.slots, rank))
    mixed = play(each.generation._forward, TURNS)
    each.slots.load(0, draw_adapter(each.slots, 9))
    each.slots.clear(1)
    return torch.cat([mixed, play(each.generation._forward, TURNS)])


@pytest.mark.parametrize("kind", [*EXACT, *ROUNDED], indirect=True, ids=", ".join)
def test_gradients_and_weights_are_those_of_one_rank(kind: Kind, one: Learning) -> None:
    """Weights are compared after two steps."""
    replayed, found = kind.family in REPLAYED, []
    for each in (one, kind.two):
        gradients = each.gradients(replayed=replayed)
        each.create()
        trained = each.train(range(len(NAMES)), replayed=replayed)
        found.append([*gradients, *(weights for weights, *_ in trained)])
    for whole, shared in zip(*found, strict=True):
        assert far(shared, whole) < CLOSE[kind.dtype]


@pytest.mark.parametrize("kind", EXACT, indirect=True, ids=", ".join)
def test_gradients_and_log_probabilities_are_autograds(kind: Kind) -> None:
    two = kind.two
    two.create()
    found = learn(two.trainer, two.batches((0, 2)))
    model = AutoModelForCausalLM.from_pretrained(kind.base, dtype=torch.float32)
    for number in (0, 2):
        policy, examples = two.trainer.policy(NAMES[number]), two.examples(number)
        expected, logprobs = reference(Merged(two.trainer, NAMES[number], model), examples)
        assert policy.gradient is not None
        assert far(policy.gradient, expected) < 1e-4
        for ours, theirs, example in zip(found[NAMES[number]].logprobs, logprobs, examples, strict=True):
            wanted = torch.tensor(example.weights) != 0
            torch.testing.assert_close(torch.from_numpy(ours)[wanted], theirs[wanted], rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", EXACT[:1], indirect=True, ids=", ".join)
def test_gradients_at_the_level_of_sequences_are_those_of_one_rank(kind: Kind, one: Learning) -> None:
    """The pieces have more logits than are computed at once, so all ranks compute them twice."""
    level = Loss(importance_sampling_level="sequence", clip_low=1.0, ratio_low=0.0, ratio_high=0.0)
    batch = PolicyBatch(NAMES[0], groups(5, prompts=40, vocabulary=one.vocabulary), level)
    assert any(len(set(piece.entries.rows)) > HEAD_ROWS for piece in plan_pieces(batch))
    gradients = []
    for each in (one, kind.two):
        each.create()
        learn(each.trainer, [batch])
        gradients.append(each.trainer.policy(NAMES[0]).gradient)
    whole, shared = gradients
    assert whole is not None
    assert shared is not None
    assert far(shared, whole) < CLOSE[kind.dtype]


@pytest.mark.parametrize("kind", MIXED, indirect=True, ids=", ".join)
def test_alone_as_beside_others(kind: Kind) -> None:
    kind.two.create()
    together = kind.two.train(range(len(NAMES)))
    for number in range(len(NAMES)):
        kind.two.create()
        (alone,) = kind.two.train([number])
        assert torch.equal(alone, together[number])


@pytest.mark.parametrize("kind", MIXED, indirect=True, ids=", ".join)
def test_one_that_is_not_finite_reaches_no_other(kind: Kind) -> None:
    kind.two.create()
    (alone,) = kind.two.train([2])
    kind.two.create()
    kind.two.trainer.policy(NAMES[0]).weights.fill_(torch.nan)
    broken, beside = kind.two.train([0, 2])
    assert broken[0].isnan().all()
    assert torch.equal(beside, alone)


@pytest.mark.parametrize("kind", MIXED, indirect=True, ids=", ".join)
def test_steps_of_requests_between_pieces_change_nothing(kind: Kind) -> None:
    """Neither does cutting the work into pieces; and cancelled work leaves nothing behind."""
    two = kind.two
    expected = two.gradients()
    answers = play(two.generation._forward, TURNS)
    two.create()
    given_up = two.trainer.begin(two.batches(range(len(NAMES))))
    for _ in range(4):
        given_up.advance()
    given_up.cancel()
    work, pieces = two.trainer.begin(two.batches(range(len(NAMES)))), 0
    while work.advance():
        pieces += 1
        if pieces % 4 == 0:
            assert torch.equal(play(two.generation._forward, TURNS), answers)
    for name, gradient in zip(NAMES, expected, strict=True):
        found = two.trainer.policy(name).gradient
        assert found is not None
        assert torch.equal(found, gradient)


@pytest.mark.parametrize("kind", MIXED, indirect=True, ids=", ".join)
def test_updates_that_take_turns_have_the_gradients_of_one_go(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others begin, end and are cancelled meanwhile, and requests run in between."""
    monkeypatch.setattr(works, "PIECE_ROWS", 24)
    monkeypatch.setattr(works, "plan_pieces", partial(plan_pieces, most=24))
    two = kind.two
    expected = two.gradients()
    answers = play(two.generation._forward, TURNS)
    two.create()
    first, second, third = two.batches(range(len(NAMES)))
    waiting: dict[str, PolicyBatch | Share] = {NAMES[0]: first, NAMES[1]: second}
    turns = 0
    while waiting:
        work = two.trainer.begin(list(waiting.values()), most=24)
        finish(work)
        waiting = dict(work.left())
        turns += 1
        assert torch.equal(play(two.generation._forward, TURNS), answers)
        given_up = two.trainer.begin([third], most=24)
        given_up.advance()
        given_up.cancel()
    assert turns > 2
    finish(two.trainer.begin([third]))
    for name, gradient in zip(NAMES, expected, strict=True):
        found = two.trainer.policy(name).gradient
        assert found is not None
        assert torch.equal(found, gradient)


@pytest.mark.parametrize("kind", MIXED, indirect=True, ids=", ".join)
@pytest.mark.parametrize("fails", ["a grade", "a grade by the base", "holding"])
def test_a_lesson_that_fails_on_the_first_rank_alone_fails_alone(kind: Kind, fails: str) -> None:
    """Between two pieces, or while others wait for grades: what comes next is as if it had never happened."""
    two = kind.two
    expected = two.gradients()
    answers = play(two.generation._forward, TURNS)
    two.create()
    first, second, third = two.batches(range(len(NAMES)))
    if fails == "holding":
        two.trainer.policy(NAMES[2]).weights = UnheldWeights()
    elif fails == "a grade":
        third = replace(third, loss=Loss(clip_high=None))  # type: ignore[arg-type]
    else:
        second = replace(second, loss=Loss(clip_high=None, kl_coefficient=0.3))  # type: ignore[arg-type]
    with pytest.raises(TypeError if fails != "holding" else MemoryError):
        learn(two.trainer, [first, second, third])
    assert not two.lost
    assert all(two.trainer.policy(name).gradient is None for name in NAMES)
    assert torch.equal(play(two.generation._forward, TURNS), answers)
    for found, each in zip(two.gradients(), expected, strict=True):
        assert torch.equal(found, each)


class UnheldWeights(torch.Tensor):
    """Weights that fail when they are to be rounded, as if there were too many."""

    def numel(self) -> int:
        raise MemoryError


async def test_a_failure_on_the_first_rank_within_a_piece_ends_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others wait in the middle of the piece."""
    others = followers()
    with engine(save("minimax_m2 by modules", tmp_path), 2) as two:
        two.create()
        (rank,) = set(followers()) - set(others)
        work = two.trainer.begin(two.batches([0]))
        work.advance()
        passed: Any = two.trainer._ranks
        monkeypatch.setattr(passed._pass, "_layers", [None])
        with pytest.raises(TypeError):
            finish(work)
        assert two.lost
        await until(lambda: rank not in followers(), timeout_s=PATIENCE_S / 2)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "hunyuan_moe", "deepseek_v3", "deepseek_v32"])
def test_three_ranks_share_what_does_not_divide(family: str, tmp_path: Path) -> None:
    """Four heads and six experts over three ranks."""
    check_gradients(save(family, tmp_path, num_key_value_heads=4), 3)


def test_four_ranks_have_a_head_of_latent_attention_each(tmp_path: Path) -> None:
    check_gradients(save("glm_5", tmp_path), 4)


def check_gradients(base: Path, ranks: int) -> None:
    """Check that the gradients of several ranks equal those of one."""
    with engine(base, 1) as one, engine(base, ranks) as several:
        for found, expected in zip(several.gradients(), one.gradients(), strict=True):
            assert far(found, expected) < 1e-4


@pytest.mark.parametrize("family", ["qwen3_moe", "hunyuan_moe"])
def test_a_rank_that_dies_within_an_update_ends_the_engine(family: str, tmp_path: Path) -> None:
    """Nobody waits for it, the error says so, and no policy has changed."""
    others = followers()
    with engine(save(family, tmp_path), 2) as two:
        two.create()
        before = two.trainer.policy(NAMES[0]).weights.clone()
        work = two.trainer.begin(two.batches(range(len(NAMES))))
        for _ in range(3):
            work.advance()
        (rank,) = set(followers()) - set(others)
        os.kill(rank, signal.SIGKILL)
        with pytest.raises(EngineUnavailable, match="retry"):
            finish(work)
        assert two.lost
        policy = two.trainer.policy(NAMES[0])
        assert (policy.busy, policy.gradient, policy.step) == (False, None, 0)
        assert torch.equal(policy.weights, before)

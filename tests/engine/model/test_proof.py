"""Before a base is served, it is checked to compute what transformers does, within rounding."""

import copy
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from mint_contracts.errors import UnsupportedBase
from mint_engine.model import attention
from mint_engine.model.base import Base
from mint_engine.model.lean import Lean
from mint_engine.model.reference import find_reference
from tests.engine.families import CPU, FAMILIES, VOCABULARY, make_forward, make_model

PLAIN = 0.1  # how far logits in bfloat16 may differ if rounding changes no choice


def deeper(family: str) -> Any:
    """A config with enough layers that rounding in the first ones changes what the last ones choose."""
    told = copy.deepcopy(FAMILIES[family]).to_dict() | {"num_hidden_layers": 12}
    for each in ("layer_types", "mlp_layer_types", "indexer_types"):
        told.pop(each, None)
    return type(FAMILIES[family])(**told)


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v32", "gpt_oss"])
def test_a_base_that_rounding_moves_far_is_served(family: str) -> None:
    with capture_logs() as logs:
        make_forward(deeper(family), dtype=torch.bfloat16)
    (chosen,) = (each for each in logs if each["event"] == "pass_chosen")
    assert chosen["moved_by_rounding"] > PLAIN
    assert chosen["difference"] > PLAIN, "which would not do of any other base"


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_rounding_changes_no_choice_of_a_base_that_makes_none(family: str) -> None:
    model = make_model(FAMILIES[family], torch.bfloat16)
    base = Base(model, None, frozenset(), family, 256, VOCABULARY, torch.bfloat16, CPU)  # type: ignore[arg-type]
    assert find_reference(base).moved == 0


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_computation_is_refused(family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """With attention that returns zeros."""
    plain = attention.attend

    def blind(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[torch.Tensor, None]:
        found, _ = plain(module, query, key, value, mask, **options)
        return torch.zeros_like(found), None

    monkeypatch.setattr(attention, "attend", blind)
    with pytest.raises(UnsupportedBase, match=r"computes other logits .* at most .* by rounding"):
        make_forward(FAMILIES[family], dtype=dtype)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_lean_pass_that_computes_something_else_gives_way(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Lean.run

    def wrong(*told: Any) -> torch.Tensor:
        return plain(*told).flip(-1)

    monkeypatch.setattr(Lean, "run", wrong)
    with capture_logs() as logs:
        forward = make_forward(FAMILIES[family], dtype=torch.bfloat16, lean=True)
    assert "lean_pass_differs" in [each["event"] for each in logs]
    assert forward.compute == "generic"

"""A wave's policies may only target modules that their base offers, with names matched as in PEFT."""

from contextlib import nullcontext

import pytest

from mint_contracts.errors import UnknownTargetModules
from mint_contracts.resources import AdapterLimits
from mint_contracts.training import Policy
from mint_operator.training.policies import check


@pytest.mark.parametrize(
    ("offered", "target", "fits"),
    [
        (["mlp.up_proj"], "mlp.up_proj", True),
        (["mlp.up_proj"], "0.mlp.up_proj", True),
        (["mlp.up_proj"], "up_proj", False),  # would include experts, too
        (["up_proj"], "shared_experts.up_proj", True),
        (["up_proj"], "own_up_proj", False),
        ([], "up_proj", True),  # only engines know which modules a base has
    ],
)
def test_policies_train_no_more_than_what_a_base_offers(offered: list[str], target: str, fits: bool) -> None:
    policy = Policy(name="team/a", rank=8, target_modules=[target])
    with nullcontext() if fits else pytest.raises(UnknownTargetModules, match=rf"targets {target}, which"):
        check([policy], AdapterLimits(target_modules=offered))

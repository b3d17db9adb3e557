"""The page's list of policies that programs train by calls."""

import msgspec

from mint_gateway.page.pages import Asked
from mint_gateway.trainer.forwarding import Forwarding

GLANCE_S = 1.0  # engines answer immediately; a page should not wait longer for one that does not


class PolicyRow(msgspec.Struct, frozen=True):
    """One policy: the engine it is on, its optimizer steps, and the number of calls that took effect."""

    policy: str
    base_model: str
    engine: str
    step: int
    calls: int


class Policies(msgspec.Struct, frozen=True):
    """A page of policies. `silent` are engines that did not answer and may have more."""

    policies: list[PolicyRow]
    next: str
    total: int
    silent: list[str]


async def policies(forwarding: Forwarding, asked: Asked) -> Policies:
    """Return a page of the policies that engines report. A name can occur twice, if an engine was cut off."""
    response = await forwarding.list("", GLANCE_S)
    found = {f"{each.policy} {each.base_model} {each.engine}": each for each in response.policies}
    names, following = asked.of(found)
    page = [
        PolicyRow(each.policy, each.base_model, each.engine, each.step, each.sequence)
        for each in (found[name] for name in names)
    ]
    return Policies(page, following, len(found), sorted(response.silent))

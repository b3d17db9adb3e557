"""Policies that programs train by calls, as the page lists them."""

import msgspec

from mint_gateway.page.pages import Asked
from mint_gateway.trainer.forwarding import Forwarding

GLANCE_S = 1.0  # engines answer at once; who looks at a page does not wait longer for one that does not


class Taught(msgspec.Struct, frozen=True):
    """One policy: where it is, and how far it has come by so many calls."""

    policy: str
    base_model: str
    engine: str
    step: int
    calls: int


class Policies(msgspec.Struct, frozen=True):
    """A page of them. `silent` are engines that may have more, and have not answered."""

    policies: list[Taught]
    next: str
    total: int
    silent: list[str]


async def policies(forwarding: Forwarding, asked: Asked) -> Policies:
    """A page of what the engines tell. Engines that were cut off from each other may have two of one name."""
    response = await forwarding.list("", GLANCE_S)
    found = {f"{each.policy} {each.base_model} {each.engine}": each for each in response.policies}
    names, following = asked.of(found)
    page = [
        Taught(each.policy, each.base_model, each.engine, each.step, each.sequence)
        for each in (found[name] for name in names)
    ]
    return Policies(page, following, len(found), sorted(response.silent))

"""Policies that begin with what another policy of the base has saved."""

import pytest

from mint_contracts import errors
from mint_gateway.client import Client, question
from tests.gateway.taught import School, learn


async def test_policies_branch_from_what_another_has_saved(school: School, patient: Client) -> None:
    trunk = await patient.create_policy("acme/sft", rank=4, seed=3)
    await learn(trunk)
    saved = await trunk.save_state()
    branches = [await patient.create_policy(f"acme/{name}", rank=8) for name in ("slow", "fast")]
    for branch in branches:
        await branch.load_state(saved, saved_by="acme/sft")
        assert branch.step == 1
    norm = await learn(trunk)
    assert [await learn(branch) for branch in branches] == [norm, norm]
    await trunk.drop()
    again = await patient.create_policy("acme/again", rank=4)
    await again.load_state(saved, saved_by="acme/sft")
    assert await learn(again) == norm
    published = await again.publish()
    assert (await patient.answer(question([5], adapter="acme/again", max_tokens=1))).revision == published.revision
    resaved = await again.save_state()
    await learn(again)
    await again.load_state(resaved)
    assert again.step == 2


async def test_a_state_of_another_policy_is_loaded_only_as_such(school: School, patient: Client) -> None:
    trunk, branch = [await patient.create_policy(f"acme/{name}", rank=4) for name in ("sft", "rl")]
    saved = await trunk.save_state()
    with pytest.raises(errors.SourceForbidden, match="its own states; give a uri that SaveState returned, or name"):
        await branch.load_state(saved)
    with pytest.raises(errors.SourceForbidden, match="can only load a state of policy 'acme/other'; give a uri that"):
        await branch.load_state(saved, saved_by="acme/other")
    with pytest.raises(errors.InvalidRequest, match="is not a valid name"):
        await branch.load_state(saved, saved_by="acme/../acme/sft")
    with pytest.raises(errors.SourceNotFound, match="of policy 'acme/sft': does not exist, or was swept"):
        await branch.load_state(saved[:-1] + "9", saved_by="acme/sft")
    await branch.load_state(saved, saved_by="acme/sft")

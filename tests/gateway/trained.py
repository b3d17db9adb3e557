"""Checks, call by call, that one tenant's key reaches nothing of another tenant's policies of Trainer calls."""

from typing import Any

import grpc
import pytest

from mint_contracts import errors
from mint_contracts import training_pb2 as pb
from mint_contracts.wire import from_rpc_error
from tests.gateway.tenants import NOBODY, SHARED, Check, Tenants, own, refused


async def create_policy(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    for name in (f"{other}/made", f"{other}/new", f"{NOBODY}/new"):
        with pytest.raises(errors.PermissionDenied, match=f"policy '{name}': is outside your key's scope; contact"):
            await client.create_policy(name, base_model=SHARED)
    refusal = await refused(client.create_policy(f"{me}/new", base_model=own(other)), own(other))
    assert refusal == await refused(client.create_policy(f"{me}/new", base_model=own(NOBODY)), own(NOBODY))
    assert not tenants.trainer.asked, "the engine has not even been asked"
    assert (await client.create_policy(f"{me}/new", base_model=SHARED)).life == 1


def called(call: str, request: Any) -> Check:
    """Return a check of a Trainer call on one policy."""

    async def check(tenants: Tenants, me: str, other: str) -> None:
        async def ask(policy: str) -> object:
            client = tenants.clients[me]
            asked = type(request)(policy=policy, base_model=SHARED)
            if hasattr(asked, "sequence"):
                asked.sequence = 1
            try:
                return await getattr(client._trainer, call)(asked, metadata=client._connection.metadata)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error

        theirs, nobodys = f"{other}/made", f"{NOBODY}/made"
        refusal = await refused(ask(theirs), theirs)
        assert refusal == await refused(ask(nobodys), nobodys)
        assert (refusal[0], other in refusal[1]) == ("PolicyNotFound", False)
        assert not tenants.trainer.asked, "the engine has not even been asked"
        assert await ask(f"{me}/made") is not None
        assert {each.policy for each in tenants.trainer.asked} == {f"{me}/made"}

    return check


async def list_policies(tenants: Tenants, me: str, other: str) -> None:
    client = tenants.clients[me]
    for base in ("", SHARED):
        response = await client.policies(base)
        assert ([each.policy for each in response.policies], list(response.silent)) == ([f"{me}/made"], [])
    told_not = await refused(client.policies(own(other)), own(other))
    assert told_not == await refused(client.policies(own(NOBODY)), own(NOBODY))
    assert len((await tenants.clients["admin"].policies()).policies) == 2
    tenants.trainer.resting = {name: pb.PolicyState(policy=name) for name in (f"{me}/old", f"{other}/old")}
    for base in ("", SHARED):
        response = await client.resting_policies(base, size=1)
        assert ([each.policy for each in response.policies], list(response.silent)) == ([f"{me}/old"], [])
        asked = pb.ListPoliciesRequest(base_model=base, resting=True, page_size=1)
        page = await client._trainer.ListPolicies(asked, metadata=client._connection.metadata)
        assert other not in page.next_page_token
    assert len((await tenants.clients["admin"].resting_policies(size=1)).policies) == 2


async def load_state(tenants: Tenants, me: str, other: str) -> None:
    await called("LoadState", pb.LoadStateRequest())(tenants, me, other)
    client, asked = tenants.clients[me], len(tenants.trainer.asked)
    for name in (f"{other}/made", f"{NOBODY}/made"):
        request = pb.LoadStateRequest(
            policy=f"{me}/made", sequence=1, uri="file:///x", saved_by=name, base_model=SHARED
        )
        with pytest.raises(errors.PermissionDenied, match=f"policy '{name}': is outside your key's scope; contact"):
            await client._connection.call(client._trainer.LoadState, request)
    assert len(tenants.trainer.asked) == asked, "the engine has not even been asked"


CHECKS: dict[str, Check] = {
    "CreatePolicy": create_policy,
    "ResumePolicy": called("ResumePolicy", pb.ResumePolicyRequest()),
    "GetPolicy": called("GetPolicy", pb.GetPolicyRequest()),
    "ListPolicies": list_policies,
    "ForwardBackward": called("ForwardBackward", pb.ForwardBackwardRequest()),
    "OptimStep": called("OptimStep", pb.OptimStepRequest()),
    "SaveState": called("SaveState", pb.SaveStateRequest()),
    "LoadState": load_state,
    "Publish": called("Publish", pb.PublishRequest()),
    "DropPolicy": called("DropPolicy", pb.DropPolicyRequest()),
}

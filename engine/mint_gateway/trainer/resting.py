"""Listing resting policies. They are on no engine, so any engine of a base can list them from its training store."""

from collections.abc import Sequence

import grpc

from mint_contracts import training_pb2 as pb
from mint_contracts.paging import page_size
from mint_gateway.channels import Channels
from mint_gateway.route import Router
from mint_gateway.trainer.policy_locations import trainers
from mint_gateway.view import Engine, MapView

PAGE, PAGE_MAX = 100, 1000
TRIED, LIST_S = 2, 4.0  # engines asked, and seconds for each to list its store: together less than a client waits


async def resting(router: Router, channels: Channels, request: pb.ListPoliciesRequest) -> pb.ListPoliciesResponse:
    """Return a page of resting policies, of one base or of all, within the key's scope. Raises InvalidRequest.

    Its token is the base and name of the last one, which the key opens, so that it reveals nothing of other tenants.
    """
    size = page_size(request.page_size, PAGE, PAGE_MAX)
    of, _, after = request.page_token.partition(" ")
    response = pb.ListPoliciesResponse()
    for view in router.views(request.base_model):
        if view.base < of or view.record is None or not view.record.trains:
            continue
        ready = sorted(trainers(view, router.now(view)), key=lambda engine: not engine.record.ready)
        await _add(channels, view, ready[:TRIED], after if view.base == of else "", size, response)
        if len(response.policies) == size:
            last = response.policies[-1]
            response.next_page_token = f"{last.base_model} {last.policy}"
            break
    return response


async def _add(
    channels: Channels,
    view: MapView,
    engines: Sequence[Engine],
    after: str,
    size: int,
    response: pb.ListPoliciesResponse,
) -> None:
    """Add a base's resting policies until the page is full.

    If no engine answers, `silent` gets their names, or the base's if it has no engine.
    """
    most = size if view.scope.adapters is None else PAGE_MAX
    while True:
        request = pb.ListPoliciesRequest(resting=True, page_size=most, page_token=after)
        answer = await _first_answer(channels, engines, request)
        if answer is None:
            response.silent.extend([engine.name for engine in engines] or [view.base])
            return
        for each in answer.policies:
            # An engine of an earlier version lists the policies that it has instead; skip those.
            if not each.engine and view.scope.adapter(each.policy):
                each.base_model = view.base
                response.policies.append(each)
                if len(response.policies) == size:
                    return
        if not answer.next_page_token:
            return
        after = answer.next_page_token


async def _first_answer(
    channels: Channels, engines: Sequence[Engine], request: pb.ListPoliciesRequest
) -> pb.ListPoliciesResponse | None:
    """Return the answer of the first engine that gives one, or None."""
    for engine in engines:
        async with channels.use(engine.record.address) as stubs:
            try:
                return await stubs.trainer.ListPolicies(request, timeout=LIST_S)
            except grpc.aio.AioRpcError:
                continue
    return None

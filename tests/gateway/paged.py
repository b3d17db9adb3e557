"""Checks, route by route, that the web page shows one tenant's key nothing of another tenant."""

from tests.gateway.tenants import NOBODY, SHARED, Check, Tenants, own, raise_error, unlearnt


async def bases(tenants: Tenants, me: str, other: str) -> None:
    _, answer = await tenants.http(me, "GET", "/v1/mint/bases")
    shared, mine = answer["bases"][1 if me < "models" else 0], answer["bases"][0 if me < "models" else 1]
    assert (shared["base_model"], mine["base_model"], answer["total"]["bases"]) == (SHARED, own(me), 2)
    assert (shared["placed"], shared["held"]["disk"], shared["slots_used"]) == (2, 1, None), (
        "of others not even counts"
    )
    assert answer["total"]["slots_used"] is None
    assert other not in repr(answer)
    _, everything = await tenants.http("admin", "GET", "/v1/mint/bases")
    held = {each["base_model"]: (each["held"]["disk"], each["slots_used"]) for each in everything["bases"]}
    assert held[SHARED] == (2, 2)


async def serving(tenants: Tenants, me: str, other: str) -> None:
    _, answer = await tenants.http(me, "GET", "/v1/mint/waves/serving")
    assert [(each["wave"], each["position"]) for each in answer["waves"]] == [(f"{me}/wave", 1)]
    assert (answer["total"], answer["pending"]) == (1, 1)
    assert other not in repr(answer)
    assert len((await tenants.http("admin", "GET", "/v1/mint/waves/serving"))[1]["waves"]) == 2


async def training(tenants: Tenants, me: str, other: str) -> None:
    _, answer = await tenants.http(me, "GET", "/v1/mint/waves/training")
    assert [(each["wave"], each["policies"]) for each in answer["waves"]] == [(f"{me}/lessons", 1)]
    assert (answer["total"], other in repr(answer)) == (1, False)
    assert (await tenants.http("admin", "GET", "/v1/mint/waves/training"))[1]["total"] == 2


async def policies(tenants: Tenants, me: str, other: str) -> None:
    _, answer = await tenants.http(me, "GET", "/v1/mint/policies")
    assert [each["policy"] for each in answer["policies"]] == [f"{me}/made"]
    assert (answer["total"], other in repr(answer)) == (1, False)
    assert (await tenants.http("admin", "GET", "/v1/mint/policies"))[1]["total"] == 2


async def wave(tenants: Tenants, me: str, other: str) -> None:
    for wave, policies in ((f"{me}/wave", None), (f"{me}/lessons", [f"{me}/lessons-0"])):
        status, answer = await tenants.http(me, "GET", f"/v1/mint/wave?name={wave}")
        progress = answer["progress"]
        assert (status, progress and [each["policy"] for each in progress["policies"]]) == (200, policies)
        assert other not in repr(answer)
    for what in ("wave", "lessons"):
        responses = [await tenants.http(me, "GET", f"/v1/mint/wave?name={who}/{what}") for who in (other, NOBODY)]
        assert responses[0][0] == 404
        assert repr(responses[0]).replace(other, "NAME") == repr(responses[1]).replace(NOBODY, "NAME")


async def adapter(tenants: Tenants, me: str, other: str) -> None:
    await tenants.clients["admin"].retire([f"{other}/dog"], SHARED)

    async def ask(name: str, base: str) -> object:
        status, answer = await tenants.http(me, "GET", f"/v1/mint/adapter?name={name}&base_model={base}")
        return answer if status == 200 else raise_error(status, answer)

    await unlearnt(ask, me, other, "dog")
    for name in ("bot", "twin", "made", "cat"):
        assert other not in repr(await ask(f"{me}/{name}", SHARED))
        await unlearnt(ask, me, other, name)


async def adapters(tenants: Tenants, me: str, other: str) -> None:
    _, answer = await tenants.http(me, "GET", "/v1/mint/adapters")
    assert answer["names"] == [f"{me}/{name}" for name in ("bot", "cat", "dog", "made", "twin")]
    for prefix in (other, f"{other}/", f"{other}/c"):
        assert (await tenants.http(me, "GET", f"/v1/mint/adapters?prefix={prefix}"))[1]["names"] == []
    assert (await tenants.http(me, "GET", f"/v1/mint/adapters?prefix={me}/c"))[1]["names"] == [f"{me}/cat"]
    assert len((await tenants.http("admin", "GET", "/v1/mint/adapters"))[1]["names"]) == 10


CHECKS: dict[str, Check] = {
    "bases": bases,
    "waves/serving": serving,
    "waves/training": training,
    "policies": policies,
    "wave": wave,
    "adapter": adapter,
    "adapters": adapters,
}

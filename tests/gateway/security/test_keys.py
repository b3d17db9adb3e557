"""API keys at both doors: clients without a known key are refused, and the log names the others' keys."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from mint_contracts import errors
from mint_contracts.catalog_pb2 import RegisterRequest
from mint_gateway.client import Client, question
from mint_gateway.page.files import FILES
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.security.keys import Keys, read_keys
from mint_gateway.security.mounted import Mounted
from tests.gateway.command import mint
from tests.gateway.scene import BASE, Scene
from tests.gateway.secrets import mount
from tests.waiting import until

GOOD, OTHER = "s3cret-of-team-a", "s3cret-of-team-b"


@pytest.fixture
async def secret(scene: Scene, tmp_path: Path) -> Path:
    """A mounted Secret whose keys a gateway with one engine requires."""
    folder = mount(tmp_path / "keys", {"team-a": f"{GOOD}\n".encode(), "team-b": OTHER.encode()})
    await scene.with_engine(security=DoorSecurity.by(None, folder), key=GOOD)
    return folder


async def by_http(scene: Scene, path: str, authorization: str | None) -> tuple[int, object, str | None]:
    """Return the status, the JSON and WWW-Authenticate of a GET."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with aiohttp.ClientSession() as session, session.get(scene.url + path, headers=headers) as answer:
        return answer.status, await answer.json(), answer.headers.get("WWW-Authenticate")


@pytest.mark.usefixtures("secret")
async def test_every_call_by_grpc_bears_a_known_key_or_is_refused(scene: Scene) -> None:
    async def silent() -> AsyncIterator[RegisterRequest]:
        yield RegisterRequest()

    assert (await scene.client.answer(question("Ahoy?", base_model=BASE))).text == "Hello there."
    assert not await scene.client.placements()
    for key in ("", "wrong", GOOD[:-1], GOOD + "x"):
        async with Client(scene.target, patience_s=0.0, key=key) as client:
            for call in (
                client.answer(question("Ahoy?", base_model=BASE)),
                client.placements(),
                client.explain(""),
                client.explain_wave("demo/wave"),
                client.catalog_page(),
                client.resolve("demo/pirate"),
                client.retire(["demo/pirate"]),
                client.register(silent()),
                client.waves(),
                anext(client.watch("demo/wave")),
            ):
                with pytest.raises(errors.Unauthenticated):
                    await call


@pytest.mark.usefixtures("secret")
async def test_a_scheme_is_told_in_any_case_and_another_one_is_no_key(scene: Scene) -> None:
    for header, status in (
        (f"Bearer {GOOD}", 200),
        (f"bearer  {GOOD} ", 200),
        (f"Bearer {OTHER}", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (GOOD, 401),
        (f"Basic {GOOD}", 401),
        (f"Bearer {GOOD}ä", 401),
    ):
        assert (await by_http(scene, "/v1/models", header))[0] == status, header


@pytest.mark.usefixtures("secret")
async def test_openais_client_is_told_as_openai_tells_it(scene: Scene) -> None:
    for key, message in (("wrong", "holds an unknown key"), ("", "holds no key; send 'Bearer KEY'")):
        status, answer, how = await by_http(scene, "/v1/models", f"Bearer {key}")
        assert (status, how) == (401, "Bearer")
        assert isinstance(answer, dict)
        assert answer["error"]["type"] == "invalid_request_error"
        assert answer["error"]["code"] == "Unauthenticated"
        assert message in answer["error"]["message"]
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.completions.create(model=BASE, prompt="Ahoy")
    async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key=GOOD, max_retries=0) as client:
        answered = await client.completions.create(model=BASE, prompt="Ahoy")
        assert answered.choices[0].text == "Hello there."


@pytest.mark.usefixtures("secret")
async def test_health_and_reflection_ask_for_no_key(scene: Scene) -> None:
    async def ask() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    async with grpc.aio.insecure_channel(scene.target) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        assert [
            reply async for reply in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(ask())
        ]
    for path in ("/health", "/live"):
        assert (await by_http(scene, path, None))[0] == 200
    assert (await by_http(scene, "/healthy", None))[0] == 401


@pytest.mark.usefixtures("secret")
async def test_the_page_s_files_ask_for_no_key_and_what_it_asks_for_does(scene: Scene) -> None:
    async with aiohttp.ClientSession() as session:
        for path in FILES:
            async with session.get(scene.url + path) as answer:
                assert answer.status == 200
                assert BASE not in await answer.text()
    for call in ("bases", "waves/serving", "waves/training", "wave?name=a/b", "adapter?name=", "adapters"):
        for header in (None, "Bearer wrong"):
            assert (await by_http(scene, f"/v1/mint/{call}", header))[::2] == (401, "Bearer")
    assert (await by_http(scene, "/v1/mint/bases", f"Bearer {GOOD}"))[0] == 200
    for path in ("//", "/page.js/", "/page.py", "/answers.py", "/../keys.py"):
        assert (await by_http(scene, path, None))[0] == 401


@pytest.mark.usefixtures("secret")
async def test_logs_and_metrics_tell_whose_key_it_was_and_never_the_key(scene: Scene) -> None:
    value = scene.gateway.metrics.registry.get_sample_value
    with capture_logs() as logs:
        await scene.client.answer(question("Ahoy?", base_model=BASE))
        async with openai.AsyncOpenAI(base_url=f"{scene.url}/v1", api_key=OTHER, max_retries=0) as client:
            await client.completions.create(model=BASE, prompt="Ahoy")
        async with Client(scene.target, patience_s=0.0, key="wr0ng") as stranger:
            with pytest.raises(errors.Unauthenticated) as refusal:
                await stranger.placements()
        await by_http(scene, "/v1/models", "Bearer wr0ng")
        await until(lambda: len(logs) == 4)
    assert [line.get("client") for line in logs if line["event"] == "request"] == ["team-a", "team-b"]
    refused = [line for line in logs if line["event"] == "unauthenticated"]
    assert [line["call"] for line in refused] == ["/mint.v1.Placement/ListPlacements", "GET /v1/models"]
    assert all("127.0.0.1" in line["peer"] for line in refused)
    for name in ("team-a", "team-b"):
        assert value("mint_gateway_requests_total", {"code": "OK", "client": name}) == 1
    for door in ("grpc", "http"):
        assert value("mint_gateway_unauthenticated_total", {"door": door}) == 1
    for key in (GOOD, OTHER, "wr0ng"):
        assert key not in repr(logs) + str(refusal.value)


async def test_keys_come_and_go_without_a_restart(scene: Scene, secret: Path) -> None:
    async def knows(key: str) -> bool:
        return (await by_http(scene, "/v1/models", f"Bearer {key}"))[0] == 200

    with capture_logs() as logs:
        mount(secret, {"team-b": OTHER.encode(), "team-c": b"fresh", "nobody": b"", "torn": b"two words"})
        await until(lambda: knows("fresh"))
        assert not await knows(GOOD)
        assert not await knows("two words")
        assert await knows(OTHER)
        with pytest.raises(errors.Unauthenticated):
            await scene.client.placements()
        mount(secret, {})

        async def nobody_is_known() -> bool:
            return not await knows(OTHER)

        await until(nobody_is_known)
    unusable = [line["file"].rpartition("/")[2] for line in logs if line["event"].startswith("key cannot be used")]
    assert unusable == ["nobody", "torn"]
    assert "two words" not in repr(logs)


def test_keys_are_not_shown_in_a_repr(tmp_path: Path) -> None:
    keys: Mounted[Keys] = Mounted(mount(tmp_path / "keys", {"team-a": GOOD.encode()}), read_keys)
    assert keys.now.bearer(f"Bearer {GOOD}") == "team-a"
    assert GOOD not in repr(keys.now)


@pytest.mark.usefixtures("secret")
async def test_the_command_line_takes_its_key_from_the_environment(scene: Scene) -> None:
    assert await mint(scene.target, "ask", "Hello?", MINT_API_KEY=GOOD) == (0, "Hello there.\n", "")
    assert (await mint(scene.target, "wave", "list", MINT_API_KEY=OTHER))[0] == 0
    for key, message in (("", "holds no key"), ("wrong", "holds an unknown key")):
        code, _, err = await mint(scene.target, "ask", "Hello?", MINT_API_KEY=key)
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith("mint: Unauthenticated: authorization: ")
        assert message in err
    code, _, err = await mint(scene.target, "ask", "Hello?", MINT_API_KEY="s3cret\nkey")
    assert (code, err) == (1, "mint: InvalidRequest: key: holds characters that are not printable ASCII\n")

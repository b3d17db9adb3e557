"""Both doors over TLS: real certificates on real sockets, and new ones without a restart."""

import asyncio
import gc
import os
import ssl
import subprocess
import sys
from asyncio.sslproto import SSLProtocol
from pathlib import Path

import aiohttp
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from mint_contracts import errors
from mint_gateway.client import Client, question
from mint_gateway.dialling import Trust, untrusted
from mint_gateway.http.connections import PARTING_S
from mint_gateway.http.door import listen
from mint_gateway.security.certificate import TLS_BUFFER, read_certificate
from mint_gateway.security.door_security import DoorSecurity
from mint_gateway.security.mounted import Mounted
from mint_gateway.server import serve
from tests.gateway.command import mint, own_lines
from tests.gateway.scene import BASE, LIMITS, Scene
from tests.gateway.scripted import ScriptedEngine
from tests.gateway.secrets import Authority, mount
from tests.redis_process import free_port
from tests.waiting import until

FOREVER = ("--patience", "86400")  # a wrongly retried error would exceed the test's time limit


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that no client trusts by default."""
    return Authority(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
async def engine(scene: Scene) -> ScriptedEngine:
    await scene.base()
    return await scene.engine("e-0")


@pytest.fixture
async def secret(scene: Scene, engine: ScriptedEngine, authority: Authority, tmp_path: Path) -> Path:
    """A mounted Secret with the certificate of a gateway with one engine."""
    folder = mount(tmp_path / "tls", authority.certificate("first"))
    await scene.begin(engine, security=DoorSecurity.by(folder, None), trust=Trust(authority.file.read_bytes()))
    return folder


async def get(scene: Scene, authority: Authority, path: str = "/v1/models") -> int:
    """Return the HTTP status for a client that trusts only this authority, on a new connection."""
    trusted = ssl.create_default_context(cafile=str(authority.file))
    url = f"https://127.0.0.1:{scene.gateway.http_port}{path}"
    async with aiohttp.ClientSession() as session, session.get(url, ssl=trusted) as answer:
        return answer.status


async def healthy(scene: Scene, authority: Authority) -> bool:
    """Return whether gRPC answers a client that trusts only this authority, on a new connection."""
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
    alone = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(scene.target, credentials, options=alone) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)
        except grpc.aio.AioRpcError as error:
            return not untrusted(error)
        return True


@pytest.mark.usefixtures("secret")
async def test_both_doors_answer_by_tls_and_not_without(scene: Scene, authority: Authority) -> None:
    assert (await scene.client.answer(question("Ahoy?", base_model=BASE))).text == "Hello there."
    for path in ("/v1/models", "/health", "/live"):
        assert await get(scene, authority, path) == 200
    async with Client(scene.target, patience_s=0.0) as plain:
        with pytest.raises(errors.Unavailable):
            await plain.placements()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(f"{scene.url}/health")


@pytest.mark.usefixtures("secret")
async def test_a_connection_has_a_small_buffer_and_is_soon_let_go(scene: Scene, authority: Authority) -> None:
    """Nobody needs a key to open one, nor has to end TLS when the gateway closes it."""
    before = {id(each): each for each in _tls_connections()}
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", scene.gateway.http_port, ssl=ssl.create_default_context(cafile=str(authority.file))
    )
    own = writer.transport.get_extra_info("socket").fileno()
    both = [vars(each) for each in _tls_connections() if id(each) not in before]
    (theirs,) = [each for each in both if each["_transport"].get_extra_info("socket").fileno() != own]
    assert len(theirs["_ssl_buffer"]) <= TLS_BUFFER
    assert theirs["_ssl_shutdown_timeout"] == PARTING_S
    writer.close()
    await reader.read()


def _tls_connections() -> list[SSLProtocol]:
    """Return this process's TLS connections, clients' among them."""
    return [each for each in gc.get_objects() if isinstance(each, SSLProtocol)]


@pytest.mark.parametrize("word", ["word", "words"])
@pytest.mark.usefixtures("secret")
async def test_a_long_answer_arrives_whole(
    scene: Scene, engine: ScriptedEngine, authority: Authority, word: str
) -> None:
    """Whether the gateway has written an even or an odd number of times when it waits for the client."""
    engine.words = (word,) * 1_000  # some 230 KB of events: aiohttp waits after each 64
    trusted = ssl.create_default_context(cafile=str(authority.file))
    url = f"https://127.0.0.1:{scene.gateway.http_port}/v1/completions"
    asked = {"model": BASE, "prompt": "Ahoy", "stream": True}
    async with aiohttp.ClientSession() as session, session.post(url, json=asked, ssl=trusted) as answer:
        text = await answer.text()
    assert text.count(word) == 1_000
    assert text.rstrip().endswith("[DONE]")


@pytest.mark.usefixtures("secret")
async def test_an_authority_that_is_not_trusted_or_another_name_ends_it_at_once(
    scene: Scene, authority: Authority, stranger: Authority
) -> None:
    for trust in (Trust(stranger.file.read_bytes()), Trust(authority.file.read_bytes(), server_name="mint.example")):
        async with Client(scene.target, patience_s=3600, trust=trust) as client:
            with pytest.raises(errors.Unavailable, match=r"CERTIFICATE_VERIFY_FAILED|Hostname Verification"):
                await asyncio.wait_for(client.placements(), 60)
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await get(scene, stranger)


async def test_a_new_certificate_is_shown_by_both_doors_without_a_restart(
    scene: Scene, secret: Path, authority: Authority, stranger: Authority
) -> None:
    async with Client(scene.target, patience_s=0.0, trust=Trust(authority.file.read_bytes())) as before:
        await before.placements()
        with capture_logs() as logs:
            mount(secret, stranger.certificate("second"))
            await until(lambda: [line for line in logs if line["event"] == "secret reloaded"])
        assert await healthy(scene, stranger)
        assert not await healthy(scene, authority)
        assert await get(scene, stranger) == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await get(scene, authority)
        await before.placements()  # on its existing connection


async def test_a_new_certificate_that_is_none_is_told_once_and_the_old_one_goes_on(
    scene: Scene, secret: Path, authority: Authority
) -> None:
    with capture_logs() as logs:
        good = authority.certificate("good")
        mount(secret, good | {"tls.key": b"nonsense"})
        logged = await until(lambda: [line for line in logs if line["log_level"] == "error"])
        assert isinstance(logged, list)
        assert "tls.key: is not a PEM private key" in logged[0]["error"]
        assert await healthy(scene, authority)
        assert await get(scene, authority) == 200
        mount(secret, good)
        await until(lambda: [line for line in logs if line["event"] == "secret reloaded"])
    assert len([line for line in logs if line["log_level"] == "error"]) == 1
    assert await get(scene, authority) == 200


def test_an_unusable_certificate_is_reported_by_its_files_name(tmp_path: Path, authority: Authority) -> None:
    good, other = authority.certificate("good"), authority.certificate("other")
    command = ["openssl", "ec", "-aes128", "-passout", "pass:word"]
    locked = subprocess.run(command, input=good["tls.key"], check=True, capture_output=True).stdout
    bad: list[tuple[dict[str, bytes], str]] = [
        ({"tls.crt": good["tls.crt"]}, r"tls\.key: does not exist; mount a Secret of type kubernetes\.io/tls"),
        ({"tls.key": good["tls.key"]}, r"tls\.crt: does not exist"),
        (good | {"tls.crt": b""}, r"tls\.crt: does not hold a valid PEM certificate"),
        (good | {"tls.crt": b"\xff"}, r"tls\.crt: does not hold a valid PEM certificate"),
        (good | {"tls.crt": good["tls.key"]}, r"tls\.crt: does not hold a valid PEM certificate"),
        (good | {"tls.key": b"nonsense"}, r"tls\.key: is not a PEM private key"),
        (good | {"tls.key": locked}, r"tls\.key: is not a PEM private key without a password"),
        (good | {"tls.key": other["tls.key"]}, r"tls\.key: is not the key of the certificate in tls\.crt"),
    ]
    for number, (files, says) in enumerate(bad):
        with pytest.raises((errors.SourceNotFound, errors.CorruptFile), match=says):
            Mounted(mount(tmp_path / str(number), files), read_certificate)
    with pytest.raises(errors.SourceNotFound, match="nowhere: does not exist"):
        Mounted(tmp_path / "nowhere", read_certificate)


async def test_the_program_says_which_file_it_cannot_read_and_ends(tmp_path: Path, authority: Authority) -> None:
    folder = mount(tmp_path / "tls", authority.certificate("torn") | {"tls.crt": b"torn"})
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mint_gateway.main", "--tls", str(folder)),
        stderr=asyncio.subprocess.PIPE,
        env=dict(os.environ),
    )
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1
    assert err.startswith(b"mint-gateway: ")
    assert b"tls.crt: does not hold a valid PEM certificate" in err
    assert err.count(b"\n") == 1


async def test_the_command_line_asks_by_tls(
    scene: Scene, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    folder = mount(tmp_path / "tls", authority.certificate("named", "DNS:mint-gateway.mint-system.svc"))
    await scene.with_engine(security=DoorSecurity.by(folder, None), trust=Trust(authority.file.read_bytes()))
    trusting = ("--ca", str(authority.file), "--tls-server-name", "mint-gateway.mint-system.svc")
    assert await mint(scene.target, "ask", *trusting, "Hello?") == (0, "Hello there.\n", "")
    assert (await mint(scene.target, "wave", "list", *trusting))[0] == 0
    assert (await mint(scene.target, "catalog", "list", *trusting))[2].startswith("mint: CatalogNotFound: ")
    unknown, misnamed = "--ca FILE", "--tls-server-name NAME"
    for distrusting, advice in {
        ("--tls",): unknown,
        ("--ca", str(stranger.file)): unknown,
        ("--ca", str(authority.file)): misnamed,
    }.items():
        code, _, err = await mint(scene.target, "placements", *distrusting)
        assert code == 1
        assert own_lines(err)[-1].startswith("mint: Unavailable: ")
        assert own_lines(err)[-1].endswith(f": {advice}")
    code, _, err = await mint(scene.target, "placements", "--ca", str(tmp_path / "none.crt"))
    assert (code, err) == (1, f"mint: SourceNotFound: file '{tmp_path / 'none.crt'}': does not exist\n")
    (tmp_path / "none.crt").write_bytes(b"none")
    code, _, err = await mint(scene.target, "placements", "--ca", str(tmp_path / "none.crt"))
    assert (code, err.count("\n")) == (1, 1)
    assert "none.crt': does not hold a valid PEM certificate" in err


async def test_a_command_line_is_told_of_an_expired_certificate_and_no_other_options_to_try(
    scene: Scene, authority: Authority, tmp_path: Path
) -> None:
    await scene.open(LIMITS, DoorSecurity.by(mount(tmp_path / "tls", authority.expired()), None))
    code, _, err = await mint(scene.target, "placements", "--ca", str(authority.file), *FOREVER)
    assert (code, "certificate has expired" in err) == (1, True)
    assert own_lines(err)[-1].endswith("; have the gateway's certificate, or that of its CA, renewed")


@pytest.mark.usefixtures("secret")
async def test_a_command_line_that_speaks_no_tls_to_a_gateway_that_does_is_told_the_options_to_try(
    scene: Scene,
) -> None:
    advice = "does the gateway speak TLS? Try --tls, or --ca FILE if its certificate is from a private CA"
    for verb in (("placements",), ("ask", "Hello?"), ("ask", "--bare", "--adapter", "demo/pirate", "Hello?")):
        code, _, err = await mint(scene.target, *verb, *FOREVER)
        assert (code, bool(err)) == (1, True)
        for line in err.splitlines():  # `ask` prints one for each failed answer
            assert line.startswith("mint: Unavailable: ")
            assert line.endswith(f": Socket closed; {advice}")


async def test_a_command_line_that_speaks_tls_to_a_gateway_that_does_not_is_told_the_options_to_leave_out(
    scene: Scene, authority: Authority
) -> None:
    await scene.open()
    given = {
        "--tls": ("--tls",),
        "--ca": ("--ca", str(authority.file)),
        "--tls and --tls-server-name": ("--tls", "--tls-server-name", "mint.example"),
    }
    for named, options in given.items():
        code, _, err = await mint(scene.target, "placements", *options, *FOREVER)
        assert code == 1
        assert "WRONG_VERSION_NUMBER" in err
        assert own_lines(err)[-1].endswith(f"; the gateway may not speak TLS: try without {named}")


@pytest.mark.parametrize("tls", [False, True])
async def test_a_command_line_at_the_port_for_http_is_told_which_one_is_meant(
    scene: Scene, authority: Authority, tmp_path: Path, tls: bool
) -> None:
    folder = mount(tmp_path / "tls", authority.certificate("first")) if tls else None
    trusting = ("--ca", str(authority.file)) if tls else ()
    await scene.open(LIMITS, DoorSecurity.by(folder, None), Trust(authority.file.read_bytes()) if tls else None)
    advice = "is that its HTTP port? Its gRPC port is 8470 by default"
    for verb in (("placements",), ("ask", "Hello?"), ("wave", "watch", "demo/w")):
        code, _, err = await mint(f"127.0.0.1:{scene.gateway.http_port}", *verb, *trusting, *FOREVER)
        assert code == 1
        assert own_lines(err)[-1].endswith(f"; {advice}")


async def test_a_gateway_that_is_merely_not_up_yet_is_waited_for(scene: Scene) -> None:
    """Also if a forwarder closes connections meanwhile, as a TLS gateway would."""
    hung_up = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal hung_up
        await reader.read(1)  # unread data would cause a reset
        hung_up += 1
        writer.close()

    await scene.base()
    port = free_port()
    listening = await asyncio.start_server(hang_up, "127.0.0.1", port)
    async with Client(f"127.0.0.1:{port}", patience_s=3600) as client:
        asked = asyncio.create_task(client.waves())
        await until(lambda: hung_up >= 4)
        listening.close()
        assert not asked.done()
        async with serve(scene.redis, f"127.0.0.1:{port}", listen("127.0.0.1", 0), LIMITS):
            assert await asyncio.wait_for(asked, 60) == []


async def test_no_other_failure_has_the_command_line_speak_of_tls(scene: Scene, authority: Authority) -> None:
    async def complains(target: str, *arguments: str) -> str:
        code, _, err = await mint(target, *arguments, "--patience", "0.1")
        assert code == 1
        return err

    engine = await scene.with_engine()
    other = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:10.0.0.1:8470: Socket closed"
    engine.refuse = errors.Internal("", other)
    assert (await complains(scene.target, "ask", "Hello?")).endswith(f"{other}\n")
    assert "TLS" not in await complains(scene.target, "ask", "--adapter", "demo/nobody", "Hello?")
    for options in ((), ("--ca", str(authority.file))):
        err = await complains("127.0.0.1:1", "placements", *options)
        assert "Connection refused; give the gateway's address: " in err
        assert "TLS" not in err

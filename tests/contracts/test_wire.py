"""Every error crosses a real gRPC call and arrives unchanged."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from mint_contracts import errors, sampling_pb2, sampling_pb2_grpc
from mint_contracts.wire import MESSAGE_MAX_BYTES, from_rpc_error, to_status
from tests.contracts.error_tree import EVERY

if TYPE_CHECKING:
    from mint_contracts.sampling_pb2_grpc import SamplerAsyncStub


class Refusing(sampling_pb2_grpc.SamplerServicer):
    """A service that answers every call with `error`."""

    error: errors.MintError | None = None
    code = grpc.StatusCode.OK

    async def Generate(  # type: ignore[override]  # noqa: N802
        self, request: sampling_pb2.GenerateRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        if self.error is None:
            await context.abort(self.code, "plain")
        else:
            await context.abort_with_status(to_status(self.error))


@pytest.fixture
async def refusing() -> AsyncIterator[tuple[Refusing, "SamplerAsyncStub"]]:
    servicer, server = Refusing(), grpc.aio.server()
    sampling_pb2_grpc.add_SamplerServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield servicer, sampling_pb2_grpc.SamplerStub(channel)
    await server.stop(None)


async def received(stub: "SamplerAsyncStub") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Generate(sampling_pb2.GenerateRequest(), timeout=60).read()
    return caught.value


async def test_every_class_arrives_as_itself(refusing: tuple[Refusing, "SamplerAsyncStub"]) -> None:
    servicer, stub = refusing
    for kind in EVERY:
        for retry_after_s in (None, 0.25, 90.0):
            servicer.error = kind("wave 'demo/a'", "is wrong; mend it", retry_after_s=retry_after_s)
            call = await received(stub)
            assert (call.code(), call.details()) == (kind.grpc_status, str(servicer.error))
            back = from_rpc_error(call)
            assert type(back) is kind
            assert (back.subject, back.message, back.retry_after_s) == (
                "wave 'demo/a'",
                "is wrong; mend it",
                retry_after_s,
            )


@pytest.mark.parametrize("message", ["", "größer als ✂ 🙂", "two\nlines\tand\x00more", "percent %20 sign"])
async def test_any_text_arrives_unchanged(refusing: tuple[Refusing, "SamplerAsyncStub"], message: str) -> None:
    servicer, stub = refusing
    servicer.error = errors.InvalidRequest("prompt", message)
    back = from_rpc_error(await received(stub))
    assert (back.subject, back.message) == ("prompt", message)


async def test_a_message_too_long_for_a_header_is_cut_not_lost(refusing: tuple[Refusing, "SamplerAsyncStub"]) -> None:
    servicer, stub = refusing
    servicer.error = errors.CorruptFile("adapter " + "a" * 50_000, "🙂" * 50_000)
    back = from_rpc_error(await received(stub))
    assert type(back) is errors.CorruptFile
    assert back.message == "🙂" * ((MESSAGE_MAX_BYTES - 3) // 4) + "…"
    assert back.subject.startswith("adapter aaa")


async def test_text_that_is_not_unicode_does_not_break_the_answer(
    refusing: tuple[Refusing, "SamplerAsyncStub"],
) -> None:
    servicer, stub = refusing
    servicer.error = errors.CorruptFile("file 'a\udc80b'", "bad")
    assert from_rpc_error(await received(stub)).subject == "file 'a?b'"


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Internal),
        (grpc.StatusCode.UNKNOWN, errors.Internal),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Internal),
    ],
)
async def test_a_status_that_is_not_ours_says_whether_to_retry(
    refusing: tuple[Refusing, "SamplerAsyncStub"], code: grpc.StatusCode, kind: type[errors.MintError]
) -> None:
    servicer, stub = refusing
    servicer.code = code
    back = from_rpc_error(await received(stub))
    assert type(back) is kind
    assert code.name in str(back)


@pytest.mark.parametrize("option", ["grpc.max_receive_message_length", "grpc.max_send_message_length"])
async def test_a_request_over_the_size_limit_is_the_clients_error(option: str) -> None:
    """This holds whichever end's limit refuses it; no handler of ours has seen the request."""
    bounds = {option: 1000}
    receiving = [each for each in bounds.items() if "receive" in option]
    server = grpc.aio.server(options=receiving)
    sampling_pb2_grpc.add_SamplerServicer_to_server(Refusing(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=list(bounds.items())) as channel:
        call = sampling_pb2_grpc.SamplerStub(channel).Generate(
            sampling_pb2.GenerateRequest(text="a" * 5000), timeout=60
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    await server.stop(None)
    back = from_rpc_error(caught.value)
    assert type(back) is errors.InvalidRequest
    assert "message larger than max" in str(back)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        back = from_rpc_error(await received(sampling_pb2_grpc.SamplerStub(channel)))
    assert type(back) is errors.Unavailable
    assert not back.terminal

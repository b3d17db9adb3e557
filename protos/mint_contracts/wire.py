"""MintError across gRPC, as google.rpc.Status with ErrorInfo and RetryInfo (google.aip.dev/193)."""

import re
from typing import cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from mint_contracts import errors

DOMAIN = "mint.dev"
SUBJECT_MAX_BYTES = 300
MESSAGE_MAX_BYTES = 1000
"""A status is sent in headers, as text (a byte may take three) and as details; gRPC accepts 8 kB of them in all."""


_TOO_LARGE = re.compile("(SERVER: Received|CLIENT: Sent) message larger than max")  # gRPC's own texts for a request


def to_status(error: errors.MintError) -> grpc.Status:
    """Return the status to abort a call with: `await context.abort_with_status(to_status(error))`."""
    subject, message = _cut(error.subject, SUBJECT_MAX_BYTES), _cut(error.message, MESSAGE_MAX_BYTES)
    error = type(error)(subject, message, retry_after_s=error.retry_after_s)
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=DOMAIN, metadata={"subject": error.subject, "message": error.message}
    )
    details = [_pack(info)]
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = error.grpc_status.value[0]
    status: grpc.Status = rpc_status.to_status(status_pb2.Status(code=code, message=str(error), details=details))
    return status


def from_rpc_error(call: grpc.Call | grpc.aio.AioRpcError) -> errors.MintError:
    """Return the MintError that a failed call carries; a bare transport failure becomes Unavailable or Internal.

    A request that is too large for the server becomes InvalidRequest: gRPC itself refuses it before our code sees it.
    """
    status = rpc_status.from_call(cast("grpc.Call", call))  # it uses only methods that both types have
    if status is not None:
        info, retry_after_s = error_details_pb2.ErrorInfo(), None
        for detail in status.details:
            if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
            elif detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                detail.Unpack(info)
        known = errors.by_reason(info.reason) if info.domain == DOMAIN else None
        if known is not None:
            return known(info.metadata["subject"], info.metadata["message"], retry_after_s=retry_after_s)
    code, text = call.code(), call.details() or ""
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}:
        return errors.Unavailable("", f"the call ended with {code.name}: {text}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE.search(text):
        return errors.InvalidRequest("message", f"is too large for one: {text}; send less in each")
    return errors.Internal("", f"the call ended with {code.name}: {text}")


def _cut(text: str, max_bytes: int) -> str:
    """Return the text, or as much of its beginning as fits with an ellipsis."""
    data = text.encode()
    return data.decode() if len(data) <= max_bytes else data[: max_bytes - 3].decode(errors="ignore") + "…"


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed

"""Expert routes of tokens, as clients get them with a completion and send them back with a training example.

Letters in shapes: T tokens, M layers with experts, k experts per token.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mint_contracts import sampling_pb2 as pb
from mint_contracts.byte_counts import in_units
from mint_contracts.errors import InvalidRequest
from mint_contracts.transport import MOST_ROUTE_BYTES
from mint_engine.model.routes import Routes, RouteShape

VERSION = 1
PIECE_BYTES = 1 << 20  # per message: gRPC clients accept 4 MiB by default
_NUMBERS: dict[int, np.dtype[np.integer[Any]]] = {1: np.dtype("<u1"), 2: np.dtype("<u2")}


def check_kept(shape: RouteShape | None, *, kept: bool) -> None:
    """Raise InvalidRequest if the base has no routes or the engine has not `kept` them."""
    if shape is None:
        raise InvalidRequest("sampling.routes", "cannot be returned: this base does not route experts")
    if not kept:
        raise InvalidRequest(
            "sampling.routes", "are not kept by this engine: that needs spec.training of the BaseModel"
        )


def check_room(shape: RouteShape, tokens: int, completions: int) -> None:
    """Raise InvalidRequest if the routes of `completions` of `tokens` tokens each, prompt included, are too large."""
    most = tokens * completions * shape.token_bytes
    if most > MOST_ROUTE_BYTES:
        raise InvalidRequest(
            "sampling.routes",
            f"could take {in_units(most)} ({completions} times {tokens} tokens of {shape.token_bytes} bytes); at "
            f"most {in_units(MOST_ROUTE_BYTES)} are allowed: ask for fewer completions or tokens at a time",
        )


def encode(routes: Routes) -> Iterator[pb.Routes]:
    """Yield the routes [T, M, k] of a sequence, from its first token on, in messages of bounded size."""
    tokens, layers, each = routes.shape
    width = routes.dtype.itemsize
    step = max(1, PIECE_BYTES // (layers * each * width))
    for first in range(0, tokens, step):
        part = routes[first : first + step]
        yield pb.Routes(
            version=VERSION,
            first_token=first,
            tokens=len(part),
            layers=layers,
            experts_per_token=each,
            bytes_per_expert=width,
            experts=part.astype(_NUMBERS[width]).tobytes(),
        )


def decode(
    pieces: Sequence[pb.Routes], tokens: int, shape: RouteShape | None, subject: str
) -> NDArray[np.integer[Any]] | None:
    """Return an example's routes [T, M, k], -1 for tokens that `pieces` do not cover; None if there are no pieces.

    Raises InvalidRequest about `subject`, the example.
    """
    if not pieces:
        return None
    if shape is None:
        raise InvalidRequest(subject, "has routes, but this base does not route experts")
    parts, end = list[tuple[int, NDArray[np.integer[Any]]]](), 0
    for each in pieces:
        if problem := _misformed(each, shape) or _misplaced(each, end, tokens):
            raise InvalidRequest(subject, f"has routes {problem}")
        numbers = np.frombuffer(each.experts, _NUMBERS[each.bytes_per_expert])
        part = numbers.reshape(each.tokens, shape.layers, shape.each)
        if problem := _nobody(part, each.first_token, shape):
            raise InvalidRequest(subject, f"has routes {problem}")
        parts.append((each.first_token, part))
        end = each.first_token + each.tokens
    if sum(len(part) for _, part in parts) == tokens:
        return parts[0][1] if len(parts) == 1 else np.concatenate([part for _, part in parts])
    routes = np.full((tokens, shape.layers, shape.each), -1, dtype=np.int16)
    for first, part in parts:
        routes[first : first + len(part)] = part
    return routes


def _misformed(piece: pb.Routes, shape: RouteShape) -> str:
    if piece.version != VERSION:
        return f"of version {piece.version}; this engine reads version {VERSION}"
    if (piece.layers, piece.experts_per_token) != (shape.layers, shape.each):
        return (
            f"of {piece.layers} layers with {piece.experts_per_token} experts a token; "
            f"this base has {shape.layers} with {shape.each}"
        )
    if piece.bytes_per_expert not in _NUMBERS:
        return f"with {piece.bytes_per_expert} bytes_per_expert; it is 1 or 2"
    needed = piece.tokens * shape.layers * shape.each * piece.bytes_per_expert
    if len(piece.experts) != needed:
        return f"with {len(piece.experts)} bytes of experts; {piece.tokens} tokens have {needed}"
    return ""


def _misplaced(piece: pb.Routes, end: int, tokens: int) -> str:
    first, stop = piece.first_token, piece.first_token + piece.tokens
    if first < end:
        return f"from token {first} on, after routes up to {end}; give them in order, and each token once"
    if stop > tokens:
        return f"of tokens {first} to {stop}, but has {tokens} tokens"
    return ""


def _nobody(part: NDArray[np.integer[Any]], first: int, shape: RouteShape) -> str:
    """Describe what is wrong with the expert numbers [T, M, k] from token `first` on, or return ""."""
    unknown = part >= shape.experts
    if unknown.any():
        token, layer, at = np.unravel_index(unknown.argmax(), unknown.shape)
        return (
            f"to expert {part[token, layer, at]} in layer {layer} of token {first + token}; "
            f"this base has {shape.experts}"
        )
    ordered = np.sort(part, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]).any(axis=-1)
    if twice.any():
        token, layer = np.unravel_index(twice.argmax(), twice.shape)
        return f"twice to one expert in layer {layer} of token {first + token}"
    return ""

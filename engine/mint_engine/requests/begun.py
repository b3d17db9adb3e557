"""An answer that another engine began and could not end: what its client has, from where this engine goes on."""

import hashlib

import msgspec

from mint_contracts.errors import EngineUnavailable, InvalidRequest
from mint_contracts.sampling_pb2 import GenerateRequest
from mint_contracts.source import Source
from mint_engine.requests.parameters import Sampling


class Begun(msgspec.Struct, frozen=True):
    """What the client has."""

    revision: str  # that answers; "" for the bare base
    completions: tuple[tuple[int, ...] | None, ...]  # the tokens of each, by index; None: it is finished

    def check_revision(self, adapter: str, revision: str) -> None:
        """Raise EngineUnavailable if another revision is held here: no answer is made by two of them."""
        if revision != self.revision:
            problem = f"is held here in revision {revision[:12]}; its answer began with {self.revision[:12]}"
            raise EngineUnavailable(f"adapter {adapter!r}", problem)


def base_source(source: Source) -> str:
    """Return a digest of the source of a base's files: an answer goes on only over a base of the same source."""
    return hashlib.blake2b(f"{source.uri}\0{source.revision}".encode(), digest_size=16).hexdigest()


def leave_out_prompt(request: GenerateRequest) -> None:
    """Ask for nothing of the prompt if the answer goes on: its client has what it wanted of that."""
    if request.HasField("begun"):
        request.sampling.ClearField("echo")
        request.sampling.ClearField("prompt_logprobs")


def count_left(request: GenerateRequest, n: int) -> int:
    """Return how many of the request's `n` completions are to be generated: those that its client has not whole."""
    return sum(not each.finished for each in request.begun.completions) or n


def read_begun(request: GenerateRequest, sampling: Sampling, vocab_size: int, own_base: str) -> Begun | None:
    """Return what the request's client has of its answer, checked, or None if it begins here.

    `sampling` are its checked parameters, and `own_base` is this engine's `base_source`.

    Raises EngineUnavailable if the answer began over another base, and InvalidRequest.
    """
    if not request.HasField("begun"):
        return None
    begun = request.begun
    if begun.base_source != own_base:
        raise EngineUnavailable("base model", "was loaded from elsewhere by the engine that began the answer")
    if request.sampling.routes:
        raise InvalidRequest("begun", "cannot be combined with routes")
    if len(begun.completions) != sampling.n:
        raise InvalidRequest("begun", f"has {len(begun.completions)} completions; the request asks for {sampling.n}")
    if all(each.finished for each in begun.completions):
        raise InvalidRequest("begun", "has no completion that is not finished")
    for each in begun.completions:
        if len(each.token_ids) > sampling.max_tokens:
            raise InvalidRequest("begun", f"has {len(each.token_ids)} tokens of at most {sampling.max_tokens}")
        if any(not 0 <= token < vocab_size for token in each.token_ids):
            raise InvalidRequest("begun", f"has tokens that this base has not: it has 0 to {vocab_size - 1}")
    return Begun(
        begun.revision, tuple(None if each.finished else tuple(each.token_ids) for each in begun.completions)
    )

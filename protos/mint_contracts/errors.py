"""All of MinT's errors, in one tree.

Each class is mapped once: to a gRPC status, an HTTP status and the reason of a Kubernetes condition (its name).
A *terminal* error needs a person or a changed object; any other is transient and is retried with backoff.

    MintError
    ├── InvalidRequest          the request itself is wrong
    │   ├── PromptTooLong       more tokens than the context holds
    │   └── BadExample          a line of a data set, or an example, that nothing can be learnt from
    ├── Unauthenticated         the request has no key, or an unknown one
    ├── PermissionDenied        the request's key does not open what the request would change
    ├── NotFound
    │   ├── BaseModelNotFound   no such BaseModel
    │   ├── AdapterNotFound     no wave, store or file knows the adapter
    │   ├── CatalogNotFound     the base model keeps no catalog
    │   ├── SourceNotFound      the URI was read and holds nothing
    │   └── PolicyNotFound      no policy of that name is on the engine or has a checkpoint
    ├── Rejected                the object was read and may not be used
    │   ├── SourceForbidden     scheme, path or claim that may not be read
    │   ├── UnsafeFormat        pickled weights: only safetensors are loaded
    │   ├── CorruptFile         truncated, or not what its name says
    │   ├── WrongBase           made for another base model
    │   ├── RankTooLarge        rank above the base model's limit
    │   ├── UnknownTargetModules
    │   ├── UnsupportedAdapter  a PEFT feature that the engine does not serve
    │   ├── ShapeMismatch       tensors that do not fit the base model
    │   ├── NonFiniteWeights    NaN or infinity among the weights
    │   ├── UnsupportedBase     base weights that no engine of this version can load
    │   ├── BadReward           a reward that is not a finite number, or a service that refuses to give one
    │   ├── OutOfOrder          a policy's call whose predecessor has not arrived
    │   └── TornPolicy          a defect left a policy in the middle of an optimizer step
    ├── CapacityExceeded        can never fit within the declared limits
    ├── Overloaded              a queue is full: retry after `retry_after_s`
    ├── Unavailable             something that is needed does not answer for now
    │   ├── SourceUnavailable   storage did not answer
    │   ├── EngineUnavailable   no engine can answer now
    │   ├── Draining            this engine is shutting down
    │   ├── MapUnavailable      Redis did not answer
    │   └── RewardUnavailable   a user's reward service did not answer
    ├── StaleEpoch              another operator has taken over the map
    ├── StaleLease              another engine, or a later start of this one, trains the policy
    └── Internal                a defect of MinT
"""

from typing import ClassVar

import grpc


class MintError(Exception):
    """Root of the tree. `subject` names the object, `message` says what is wrong and what to do.

    Both may quote text from outside: anything in it that is not valid Unicode (a lone surrogate) becomes "?", so that
    every error can be sent, reported and logged.
    """

    grpc_status: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    http_status: ClassVar[int] = 500
    terminal: ClassVar[bool] = True

    def __init__(self, subject: str, message: str, *, retry_after_s: float | None = None) -> None:
        subject, message = _sendable(subject), _sendable(message)
        super().__init__(f"{subject}: {message}" if subject else message)
        self.subject = subject
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def reason(self) -> str:
        """The reason for a condition, in CamelCase as Kubernetes requires."""
        return type(self).__name__


class InvalidRequest(MintError):
    """The request itself is wrong; sending it again changes nothing."""

    grpc_status = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400


class PromptTooLong(InvalidRequest):
    """The prompt and its new tokens do not fit the context."""


class BadExample(InvalidRequest):
    """A line of a data set, or an example, that nothing can be learnt from."""


class Unauthenticated(MintError):
    """The request has no key, or an unknown one."""

    grpc_status = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401


class PermissionDenied(MintError):
    """The request's key does not open what the request would change."""

    grpc_status = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403


class NotFound(MintError):
    """A named object does not exist."""

    grpc_status = grpc.StatusCode.NOT_FOUND
    http_status = 404


class BaseModelNotFound(NotFound):
    """No BaseModel of that name is served."""


class AdapterNotFound(NotFound):
    """No wave, store or file knows the adapter."""


class CatalogNotFound(NotFound):
    """The base model keeps no catalog."""


class SourceNotFound(NotFound):
    """The URI was read and holds nothing."""


class PolicyNotFound(NotFound):
    """No policy of that name is on the engine or has a checkpoint."""


class Rejected(MintError):
    """The object was read and may not be used."""

    grpc_status = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 422


class SourceForbidden(Rejected):
    """A scheme, path or claim that may not be read."""


class UnsafeFormat(Rejected):
    """Pickled weights; only safetensors are ever loaded."""


class CorruptFile(Rejected):
    """Truncated, or not what its name says."""


class WrongBase(Rejected):
    """Made for another base model."""


class RankTooLarge(Rejected):
    """Rank above the base model's limit."""


class UnknownTargetModules(Rejected):
    """Targets modules that the base model lacks or does not offer."""


class UnsupportedAdapter(Rejected):
    """Uses a PEFT feature that the engine does not serve."""


class ShapeMismatch(Rejected):
    """Tensors that do not fit the base model."""


class NonFiniteWeights(Rejected):
    """NaN or infinity among the weights."""


class UnsupportedBase(Rejected):
    """Base weights that no engine of this version can load."""


class BadReward(Rejected):
    """A reward that is not a finite number, or a service that refuses to give one."""


class OutOfOrder(Rejected):
    """A policy's call whose predecessor has not arrived."""


class TornPolicy(Rejected):
    """A defect left a policy in the middle of an optimizer step: its numbers belong to no step."""


class CapacityExceeded(MintError):
    """Can never fit within the declared limits; raise the limit or ask for less."""

    grpc_status = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 422


class Overloaded(MintError):
    """A queue is full; `retry_after_s` says when to retry."""

    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    terminal = False


class Unavailable(MintError):
    """Something that is needed does not answer for now."""

    grpc_status = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    terminal = False


class SourceUnavailable(Unavailable):
    """Storage did not answer."""


class EngineUnavailable(Unavailable):
    """No engine can answer now."""


class Draining(Unavailable):
    """This engine is shutting down and takes no new requests."""


class MapUnavailable(Unavailable):
    """Redis did not answer."""


class RewardUnavailable(Unavailable):
    """A user's reward service did not answer."""


class StaleEpoch(MintError):
    """Another operator has taken over the placement map."""

    grpc_status = grpc.StatusCode.ABORTED
    http_status = 409


class StaleLease(MintError):
    """Another engine, or a later start of this one, trains the policy now.

    `newer` is its lease if that was in use before this one was, as after a clock was put back; 0: it came later.
    """

    grpc_status = grpc.StatusCode.ABORTED
    http_status = 409

    def __init__(self, subject: str, message: str, *, retry_after_s: float | None = None, newer: int = 0) -> None:
        super().__init__(subject, message, retry_after_s=retry_after_s)
        self.newer = newer


class Internal(MintError):
    """A defect of MinT."""

    grpc_status = grpc.StatusCode.INTERNAL


def by_reason(reason: str) -> type[MintError] | None:
    """Return the class of that name; None for a reason that this version does not know."""
    return _tree(MintError).get(reason)


def _sendable(text: str) -> str:
    return text.encode(errors="replace").decode()


def _tree(root: type[MintError]) -> dict[str, type[MintError]]:
    found = {root.__name__: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found

"""Reads a manifest of policies, JSON lines or Parquet at a URI: once, in the background and within bounds."""

import asyncio
from collections.abc import Callable, Mapping

import msgspec
import structlog

from mint_contracts.errors import Internal, InvalidRequest, MintError
from mint_contracts.records import Failure
from mint_contracts.training import JSON_LINES, PARQUET, Policy
from mint_operator.observing.manifest_file import numbered, read_manifest
from mint_operator.observing.train_bounds import bounded

MOST_POLICIES = 1024
RETRY_S = 30.0

Read = tuple[Policy, ...] | Failure

log = structlog.get_logger()


class Manifests:
    """Manifests by the wave that asks, each with its URI: read once for each wave, and again later after a failure.

    Every kind of failure is retried, so that a mended file needs no new wave. Two waves that name the same URI each
    read it, since it may have been rewritten for the later one.

    `wake` is called after each read.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._work: dict[str, asyncio.Task[Read]] = {}
        self._again_at: dict[str, float] = {}
        self.found: dict[str, Read] = {}

    def want(self, uris: Mapping[str, tuple[str, str]]) -> None:
        """Begin to read what is new, take finished results, and forget what is no longer asked for.

        `uris` has the namespace of each wave that asks, and the URI.
        """
        now = asyncio.get_running_loop().time()
        for asking in (self._work.keys() | self.found.keys()) - uris.keys():
            self.found.pop(asking, None)
            self._again_at.pop(asking, None)
            if task := self._work.pop(asking, None):
                task.cancel()
        for asking, (namespace, uri) in uris.items():
            task = self._work.get(asking)
            if task is not None and task.done():
                del self._work[asking]
                self.found[asking], self._again_at[asking] = task.result(), now + RETRY_S
            elif task is None and self._due(asking, now):
                self._work[asking] = task = asyncio.create_task(read(namespace, uri))
                task.add_done_callback(lambda _: self._wake())

    def _due(self, asking: str, now: float) -> bool:
        known = self.found.get(asking)
        return known is None or (isinstance(known, Failure) and now >= self._again_at[asking])


async def read(namespace: str, uri: str) -> Read:
    """Read the policies; returns a Failure if that is impossible."""
    try:
        return await read_manifest(namespace, uri, parsed)
    except MintError as error:
        return Failure.of(error)
    except Exception as error:  # a defect that one wave's manifest triggers must not fail the others' passes
        log.exception("manifest not read", uri=uri)
        message = f"manifest {uri}: could not be read ({type(error).__name__}, see the operator's log); retrying"
        return Failure(Internal.__name__, message, terminal=False)


def parsed(uri: str, data: bytes) -> tuple[Policy, ...]:
    """Parse one policy per line. Raises InvalidRequest naming the line, CorruptFile or CapacityExceeded."""
    found: list[Policy] = []
    for number, line in numbered(uri, data, MOST_POLICIES, "policies", "policy"):
        try:
            found.append(bounded(line))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise InvalidRequest(f"manifest {uri}", f"line {number} is not a valid policy: {error}") from None
        if wrong := _wrong(found[-1]):
            raise InvalidRequest(f"manifest {uri}", f"line {number} {wrong}")
    return tuple(found)


def _wrong(policy: Policy) -> str:
    """Say what the API server would refuse in such a policy in a list, beyond single fields; empty if nothing."""
    dataset, reward = policy.dataset, policy.reward
    if dataset is not None and dataset.config_map is not None:
        return "names a ConfigMap; give its examples as dataset.lines, or by dataset.uri"
    if dataset is not None and len(dataset.places) != 1:
        return f"has a dataset with {_listed(dataset.places)}; set exactly one of uri and lines"
    if dataset is not None and dataset.uri and not dataset.uri.endswith((*JSON_LINES, PARQUET)):
        return f"has a dataset {dataset.uri!r}, which must end in {', '.join(JSON_LINES)} or {PARQUET}"
    if reward is not None and len(reward.kinds) != 1:
        return f"has a reward with {_listed(reward.kinds)}; set exactly one kind"
    parts = [part.reward for part in reward.sum] if reward is not None else []
    for place, part in enumerate(parts):
        if len(part.kinds) != 1 or part.sum:
            return (
                f"has part {place} of its reward's sum with {_listed(part.kinds)}; set exactly one kind, and no sum"
            )
    services = [each.service for each in (reward, *parts) if each is not None and each.service is not None]
    if any(each.ca_bundle and not each.tls for each in services):
        return "has a reward service with a caBundle, which needs TLS; set tls to true, or remove caBundle"
    return ""


def _listed(names: list[str]) -> str:
    return " and ".join(names) or "nothing in it"

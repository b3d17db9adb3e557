"""`mint wave pause|resume|cancel`: changes a training wave's spec through the caller's kubectl.

So the API server decides who may do it, by kubectl's context and credentials.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from mint_contracts.errors import InvalidRequest, NotFound, Unavailable
from mint_gateway.cli.purpose import purpose

TIMEOUT_S = 15
_KIND = "adapterwaves.mint.dev"  # in full: the short name may belong to another resource
_LOGGED = re.compile(r"[EIW][0-9]{4} ")  # the beginning of a line of kubectl's log, which reports each attempt


class _Train(msgspec.Struct, frozen=True):
    cancelled: bool = False
    retry: int = 0


class _Spec(msgspec.Struct, frozen=True):
    train: _Train | None = None


class _Policies(msgspec.Struct, frozen=True):
    failed: int = 0


class _Training(msgspec.Struct, frozen=True):
    policies: _Policies = _Policies()


class _Status(msgspec.Struct, frozen=True):
    phase: str = ""
    training: _Training = _Training()


class _Metadata(msgspec.Struct, frozen=True):
    namespace: str


class _Wave(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()


@dataclass(frozen=True)
class Order:
    """A change of `spec.train`, and its effect in words; `more` is for the verb's own help."""

    verb: str
    change: Mapping[str, bool]
    effect: str
    more: str = ""


ORDERS = (
    Order("pause", {"paused": True}, "its policies stop after their step, save and free their slots"),
    Order(
        "resume",
        {"paused": False},
        "its policies continue from their last step as slots become free",
        "Policies that have failed are retried from their last checkpoint.",
    ),
    Order("cancel", {"cancelled": True}, "its policies save and end for good; what they published stays"),
)


def add(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verbs. They contact no gateway, so they have none of the common options."""
    for order in ORDERS:
        what = purpose(f"{order.verb} a training wave: {order.effect}", order.more)
        own = verbs.add_parser(order.verb, **what)
        own.add_argument("wave", metavar="[NS/]NAME", help="the AdapterWave")
        where = "namespace, if NAME has none (default: that of kubectl's context)"
        own.add_argument("-n", "--namespace", default="", help=where)
        own.add_argument("--context", default="", help="kubectl's context (default: its current one)")
        own.set_defaults(run=ask, order=order)


async def ask(options: argparse.Namespace) -> int:
    """Change the wave and print what was requested. Raises NotFound, InvalidRequest or Unavailable."""
    order: Order = options.order
    namespace, _, name = options.wave.rpartition("/")
    cluster = _Kubectl(namespace or options.namespace, name, options.context)
    wave = await cluster.wave()
    cluster.found(wave.metadata.namespace)
    train, failed, effect = wave.spec.train, wave.status.training.policies.failed, order.effect
    if train is None:
        message = "is a serving wave, which cannot be paused, resumed or cancelled; delete it instead"
        raise InvalidRequest(cluster.subject, message)
    if train.cancelled and "cancelled" not in order.change:
        raise InvalidRequest(cluster.subject, "has been cancelled, which cannot be undone; create a new AdapterWave")
    change: dict[str, int] = dict(order.change)
    if failed and change.get("paused") is False:
        change["retry"] = train.retry + 1
        effect += f"; {failed} that failed are retried from their last checkpoint"
    elif wave.status.phase == "Complete" and "paused" in change:
        effect = "its policies have ended, so this has no effect until spec.train.steps is raised"
    patch = json.dumps({"spec": {"train": change}})
    await cluster.run("patch", "--type=merge", f"--patch={patch}")
    print(f"{cluster.subject}: {order.verb} requested: {effect}")
    return 0


class _Kubectl:
    """One wave in the cluster that kubectl talks to, in the namespace of its context if none is given."""

    def __init__(self, namespace: str, name: str, context: str) -> None:
        self.subject = f"wave {namespace}/{name}" if namespace else f"wave {name}"
        self._name, self._namespace, self._context = name, namespace, context

    def found(self, namespace: str) -> None:
        """Fix the namespace in which the wave was found, even if kubectl's context changes later."""
        self._namespace, self.subject = namespace, f"wave {namespace}/{self._name}"

    async def wave(self) -> _Wave:
        """Return the wave as it is now."""
        printed = await self.run("get", "--output=json")
        try:
            return msgspec.json.decode(printed, type=_Wave)
        except (msgspec.MsgspecError, UnicodeError) as error:
            message = f"what kubectl printed is not JSON of {_KIND} ({error}); is kubectl a wrapper that prints more?"
            raise Unavailable("API server", message) from None

    async def run(self, verb: str, *options: str) -> bytes:
        """Run kubectl and return what it prints. Raises InvalidRequest, NotFound or Unavailable."""
        where = [f"--namespace={self._namespace}"] if self._namespace else []
        where += [f"--context={self._context}", f"--request-timeout={TIMEOUT_S}s"]
        try:
            process = await asyncio.create_subprocess_exec(
                *("kubectl", verb, *where, *options, "--", _KIND, self._name),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError:
            message = "is not on the PATH; install it, with a context for the wave's cluster"
            raise InvalidRequest("kubectl", message) from None
        except OSError as error:
            raise InvalidRequest(
                "kubectl", f"could not be run ({error.strerror}); check which is on the PATH"
            ) from None
        out, err = await process.communicate()
        if process.returncode:
            self._refuse(_words(err.decode(errors="replace")))
        return out

    def _refuse(self, output: str) -> None:
        """Raise the error that kubectl's output means."""
        if "Error from server (NotFound)" in output:
            where = f" -n {self._namespace}" if self._namespace else ""
            raise NotFound(self.subject, f"does not exist; list the waves that do with kubectl get aw{where}")
        if "Error from server" in output or "is invalid" in output:
            raise InvalidRequest(self.subject, f"cannot be changed: {output}")
        raise Unavailable("API server", f"could not be reached by kubectl: {output}")


def _words(output: str) -> str:
    """Return kubectl's messages without its log, as one line."""
    return " ".join(line.strip() for line in output.splitlines() if not _LOGGED.match(line))

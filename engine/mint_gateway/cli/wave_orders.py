"""`mint wave pause|resume|cancel`: what a training wave is asked for, changed in its spec by the caller's kubectl.

So it is the API server that decides who may, by the context and the credentials that kubectl has.
"""

import argparse
import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from mint_contracts.errors import InvalidRequest, NotFound, Unavailable

TIMEOUT_S = 15
_KIND = "adapterwaves.mint.dev"  # in full: the short name may be another's
_LOGGED = re.compile(r"[EIW][0-9]{4} ")  # how a line of kubectl's log begins, in which it tells of each attempt


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
    training: _Training = _Training()


class _Metadata(msgspec.Struct, frozen=True):
    namespace: str


class _Wave(msgspec.Struct, frozen=True):
    metadata: _Metadata
    spec: _Spec
    status: _Status = _Status()


@dataclass(frozen=True)
class Order:
    """A change of `spec.train`, and what it asks for."""

    change: Mapping[str, bool]
    asked: str


ORDERS = {
    "pause": Order({"paused": True}, "to pause: its policies stop after their step, save and free their slots"),
    "resume": Order({"paused": False}, "to go on: its policies train from their last step as slots are free"),
    "cancel": Order({"cancelled": True}, "to stop for good: its policies save and end, what they published stays"),
}


def add(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the verbs. They ask no gateway, so that they take none of the common options."""
    for verb, order in ORDERS.items():
        own = verbs.add_parser(verb, help=f"ask a training wave {order.asked}")
        own.add_argument("wave", metavar="[NS/]NAME", help="the AdapterWave")
        where = "where NAME names none (default: the one of kubectl's context)"
        own.add_argument("-n", "--namespace", default="", help=where)
        own.add_argument("--context", default="", help="kubectl's context (default: its current one)")
        own.set_defaults(run=ask, order=order)


async def ask(options: argparse.Namespace) -> int:
    """Change the wave and say what it is asked for now. Raises NotFound, InvalidRequest or Unavailable."""
    order: Order = options.order
    namespace, _, name = options.wave.rpartition("/")
    cluster = _Kubectl(namespace or options.namespace, name, options.context)
    wave = await cluster.wave()
    cluster.found(wave.metadata.namespace)
    train, failed, asked = wave.spec.train, wave.status.training.policies.failed, order.asked
    if train is None:
        raise InvalidRequest(cluster.subject, "trains nothing, it serves adapters that exist; delete it to end that")
    if train.cancelled and "cancelled" not in order.change:
        raise InvalidRequest(cluster.subject, "is cancelled, and that is for good; make a new AdapterWave")
    change: dict[str, int] = dict(order.change)
    if failed and change.get("paused") is False:
        change["retry"] = train.retry + 1
        asked += f"; {failed} that failed are tried again from their last checkpoint"
    patch = json.dumps({"spec": {"train": change}})
    await cluster.run("patch", "--type=merge", f"--patch={patch}")
    print(f"{cluster.subject} is asked {asked}")
    return 0


class _Kubectl:
    """One wave of the cluster that kubectl talks to, in the namespace of its context where none is told."""

    def __init__(self, namespace: str, name: str, context: str) -> None:
        self.subject = f"wave {namespace}/{name}" if namespace else f"wave {name}"
        self._name, self._namespace, self._context = name, namespace, context

    def found(self, namespace: str) -> None:
        """What follows is of the wave that was found there, whatever becomes of the context."""
        self._namespace, self.subject = namespace, f"wave {namespace}/{self._name}"

    async def wave(self) -> _Wave:
        """The wave as it is now."""
        printed = await self.run("get", "--output=json")
        try:
            return msgspec.json.decode(printed, type=_Wave)
        except (msgspec.MsgspecError, UnicodeError) as error:
            said = f"what kubectl printed is no {_KIND} in JSON ({error}); is it a wrapper that says more?"
            raise Unavailable("API server", said) from None

    async def run(self, verb: str, *options: str) -> bytes:
        """What kubectl prints."""
        where = [f"--namespace={self._namespace}"] if self._namespace else []
        where += [f"--context={self._context}", f"--request-timeout={TIMEOUT_S}s"]
        try:
            process = await asyncio.create_subprocess_exec(
                *("kubectl", verb, *where, *options, "--", _KIND, self._name),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except FileNotFoundError:
            said = "is not on the PATH; install it, with a context of the cluster that the wave is in"
            raise InvalidRequest("kubectl", said) from None
        except OSError as error:
            raise InvalidRequest(
                "kubectl", f"could not be run ({error.strerror}); see which is on the PATH"
            ) from None
        out, err = await process.communicate()
        if process.returncode:
            self._refuse(_words(err.decode(errors="replace")))
        return out

    def _refuse(self, said: str) -> None:
        """Raise what kubectl's words mean."""
        if "Error from server (NotFound)" in said:
            where = f" -n {self._namespace}" if self._namespace else ""
            raise NotFound(self.subject, f"is not there; kubectl get aw{where} lists those that are")
        if "Error from server" in said or "is invalid" in said:
            raise InvalidRequest(self.subject, f"may not be changed so: {said}")
        raise Unavailable("API server", f"could not be asked by kubectl: {said}")


def _words(said: str) -> str:
    """What kubectl says in the end, in a line."""
    return " ".join(line.strip() for line in said.splitlines() if not _LOGGED.match(line))

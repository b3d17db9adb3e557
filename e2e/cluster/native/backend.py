"""The native backend: a real single-node Kubernetes in its own namespaces, without a container engine."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

from e2e.cache import cache_folder, mark_used
from e2e.cluster.backend import Cluster, Values
from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError
from e2e.cluster.native import addons, binaries, files, health, leftovers, machine, packages, sources
from e2e.cluster.native.address import choose_link, routed_networks
from e2e.cluster.native.config import CONTAINERD_SOCKET, RUNTIME_HANDLER
from e2e.cluster.native.images import HOST_IMAGE
from e2e.cluster.native.layout import KUBERNETES_VERSION, NODE_NAME, Layout
from e2e.cluster.paths import short_id
from e2e.cluster.progress import Steps

READY_MARK = "ready.json"
STAGE_LIMIT_S = 90.0
POLL_S = 0.05
NODE_POLL_S = 0.2


def chart_values() -> Values:
    """Return the chart's values: every image is the host image, whose files come from the RuntimeClass.

    The tag names the sources: changed code is a different image, so an upgrade rolls the pods. Redis never changes.
    """
    repository, constant = HOST_IMAGE.rsplit(":", 1)
    image = {"repository": repository, "tag": sources.source_tag(), "pullPolicy": "IfNotPresent"}
    images = {part: dict(image) for part in ("operator", "gateway", "engine")} | {"redis": image | {"tag": constant}}
    return {"images": images, "runtimeClassName": RUNTIME_HANDLER}


def prepare(steps: Steps) -> Path:
    """Install the system packages and build the binaries that are missing; returns the binaries' folder."""
    packages.ensure(steps)
    return binaries.ensure(steps)


class NativeBackend:
    """Creates and deletes the native cluster of one data folder."""

    name = "native"

    def __init__(self, data: Path) -> None:
        self._data = data

    def up(self, steps: Steps) -> Cluster:
        """Find the cluster healthy, or create it from scratch. Needs root."""
        _need_root()
        with self._alone(steps):
            started = time.monotonic()
            found = self.find()
            if found is not None:
                steps.say(f"reused: Kubernetes {KUBERNETES_VERSION} is up in {self._data}")
                mark_used(found.kubectl.parent.parent)
                self._tag()
                return found
            self._clear(steps)
            built = prepare(steps)
            layout = Layout(self._data, built, choose_link(short_id(self._data), routed_networks()))
            supervisor = self._start(layout, steps)
            self._settle(layout, supervisor, steps)
            self._tag()
            mark = {"binaries": str(layout.binaries), "link": str(layout.link)}
            (self._data / READY_MARK).write_text(json.dumps(mark))
            steps.say(f"up in {time.monotonic() - started:.1f} s")
            return _cluster(layout)

    def down(self, steps: Steps) -> None:
        """End the supervisor, and with it every process; then remove what is left. Needs root."""
        _need_root()
        with self._alone(steps):
            if not self._clear(steps):
                steps.say("nothing to end")

    def find(self) -> Cluster | None:
        """Return the cluster if it was once complete, its supervisor is alive, and its node is Ready now."""
        layout = self._layout()
        if layout is None or machine.running(self._data) is None or not health.node_ready(layout):
            return None
        return _cluster(layout)

    def status(self) -> list[str]:
        """Return lines about the node, its components, and where things are."""
        layout, supervisor = self._layout(), machine.running(self._data)
        if layout is None or supervisor is None:
            left = leftovers.found(self._data)
            return [f"native cluster: not up{'; left behind: ' + ', '.join(left) if left else ''}"]
        node = "Ready" if health.node_ready(layout) else "not Ready"
        lines = [
            f"native cluster: Kubernetes {KUBERNETES_VERSION}, node {NODE_NAME} {node}",
            f"API server {layout.api_url}, kubeconfig {layout.kubeconfig}",
            f"supervisor pid {supervisor.outer.pid}, logs in {layout.logs}",
        ]
        for name, state in health.component_states(self._data).items():
            word = "running" if state["running"] else f"ended with {state['ended'] or 'nothing: waiting to start'}"
            lines.append(f"  {name}: {word}, started {state['starts']} time(s)")
        return lines

    def import_image(self, archive: Path) -> None:
        """Load an archive into the node's containerd."""
        supervisor = machine.running(self._data)
        if supervisor is None:
            raise ClusterError("the cluster is not up: run `python -m e2e.cluster up`")
        _import(supervisor, archive)

    def _tag(self) -> None:
        """Compile the current sources, and tag the host image with their digest, too."""
        sources.compile_sources()
        supervisor = machine.running(self._data)
        if supervisor is None:
            raise ClusterError("the cluster ended while it was prepared: run `python -m e2e.cluster up`")
        name = f"{HOST_IMAGE.rsplit(':', 1)[0]}:{sources.source_tag()}"
        run([*_ctr(supervisor), "images", "tag", "--force", f"{HOST_IMAGE}", name], limit_s=60)

    def _layout(self) -> Layout | None:
        try:
            mark = json.loads((self._data / READY_MARK).read_text())
        except (FileNotFoundError, PermissionError):
            return None
        return Layout(self._data, Path(mark["binaries"]), IPv4Network(mark["link"]))

    def _clear(self, steps: Steps) -> bool:
        """End and remove whatever there is of the cluster, complete or not; returns False if there was nothing."""
        supervisor = machine.recorded(self._data)
        if supervisor is None and not leftovers.found(self._data):
            return False
        alive = supervisor is not None and supervisor.alive
        with steps.step("end the cluster and remove its data" if alive else "remove what a cluster left"):
            if supervisor is not None:
                supervisor.end()
            leftovers.remove(self._data)
        return True

    def _start(self, layout: Layout, steps: Steps) -> machine.Supervisor:
        with steps.step("write keys, configurations and images"):
            plan = files.write(layout)
            leftovers.make_cgroups(self._data)
        with steps.step("enter fresh namespaces"):
            return machine.start(layout, plan)

    def _settle(self, layout: Layout, supervisor: machine.Supervisor, steps: Steps) -> None:
        """Wait for each part in turn and give it what it needs."""
        data = self._data
        with steps.step("start containerd and import images"):
            socket = supervisor.inside(CONTAINERD_SOCKET)
            _wait(socket.exists, data, supervisor, "containerd")
            for archive in sorted((data / "images").iterdir()):
                _import(supervisor, archive)
        with steps.step("start the API server"):
            _wait(lambda: health.api_ready(layout), data, supervisor, "kube-apiserver")
        with steps.step("apply the runtime class and the storage class"):
            apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"]
            _cluster(layout).kube.kubectl(*apply, stdin=addons.manifests())
        with steps.step("wait for the node and DNS"):
            _wait(lambda: health.node_ready(layout), data, supervisor, "kubelet", NODE_POLL_S)
            _wait(lambda: health.dns_ready(layout), data, supervisor, "coredns", NODE_POLL_S)
            _wait(lambda: health.account_ready(layout), data, supervisor, "kube-controller-manager", NODE_POLL_S)

    @contextmanager
    def _alone(self, steps: Steps) -> Iterator[None]:
        """Hold this cluster's lock, which is in the cache, since the data folder comes and goes."""
        folder = cache_folder() / "kubernetes"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{short_id(self._data)}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with steps.step("wait for another command on this cluster"):
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _cluster(layout: Layout) -> Cluster:
    return Cluster(
        backend=NativeBackend.name,
        kubeconfig=layout.kubeconfig,
        kubectl=layout.binaries / "kubectl",
        helm=layout.binaries / "helm",
        chart_values=chart_values(),
    )


def _import(supervisor: machine.Supervisor, archive: Path) -> None:
    run([*_ctr(supervisor), "images", "import", archive], limit_s=300)


def _ctr(supervisor: machine.Supervisor) -> list[str | Path]:
    return ["ctr", "--address", supervisor.inside(CONTAINERD_SOCKET), "--namespace", "k8s.io"]


def _wait(
    ready: Callable[[], bool], data: Path, supervisor: machine.Supervisor, component: str, poll_s: float = POLL_S
) -> None:
    """Wait until `ready`. Raises ClusterError with the end of the log of what does not start."""
    deadline = time.monotonic() + STAGE_LIMIT_S
    while not ready():
        if not supervisor.alive:
            raise ClusterError(f"the supervisor ended; {health.log_tail(data, 'supervisor')}")
        ailing = health.troubled(data)
        if ailing is not None:
            raise ClusterError(f"{ailing} keeps ending; {health.log_tail(data, ailing)}")
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{component} is not ready after {STAGE_LIMIT_S:.0f} s; {health.log_tail(data, component)}"
            )
        time.sleep(poll_s)


def _need_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("the native cluster needs root; use --context for a cluster of your own")

"""The Go part of the native cluster: built once for each state of its sources, then taken from the cache.

`go/` pins Kubernetes, etcd, CoreDNS and the volume provisioner in one module; `helm/` pins Helm in another, since it
needs newer Kubernetes libraries. Binaries are in `<cache>/kubernetes/<hash of the inputs>/bin` once they are built.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cache import cache_folder, evict, mark_used
from e2e.cluster.commands import run, tail
from e2e.cluster.errors import ClusterError
from e2e.cluster.native.layout import KUBERNETES_VERSION
from e2e.cluster.progress import Step, Steps

HERE = Path(__file__).resolve().parent
VERSION_PACKAGE = "k8s.io/component-base/version"
MAJOR, MINOR, _ = KUBERNETES_VERSION.split(".")
# Without these, charts and clients refuse a server that calls itself v0.0.0-master+$Format:%H$.
VERSION_FLAGS = (
    f"-s -w -X {VERSION_PACKAGE}.gitVersion=v{KUBERNETES_VERSION} -X {VERSION_PACKAGE}.gitMajor={MAJOR}"
    f" -X {VERSION_PACKAGE}.gitMinor={MINOR} -X {VERSION_PACKAGE}.gitTreeState=clean"
)
CLIENTS = ("kubectl", "helm")


@dataclass(frozen=True)
class Target:
    """One `go build`: packages of one module, whose binaries are named by the packages' last parts, or `name`."""

    module: str
    packages: tuple[str, ...]
    flags: str = "-s -w"
    name: str | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The binaries' names."""
        return (self.name,) if self.name else tuple(package.rsplit("/", 1)[1] for package in self.packages)

    def only(self, names: Iterable[str]) -> "Target":
        """Return this target with only the packages whose binaries are in `names`."""
        wanted = set(names)
        packages = tuple(p for p, o in zip(self.packages, self.outputs, strict=True) if o in wanted)
        return Target(self.module, packages, self.flags, self.name)


TARGETS = (
    Target(
        "go",
        tuple(
            f"k8s.io/kubernetes/cmd/{command}"
            for command in (
                "kubectl",
                "kube-apiserver",
                "kube-controller-manager",
                "kube-scheduler",
                "kubelet",
                "kube-proxy",
            )
        ),
        VERSION_FLAGS,
    ),
    Target("go", ("go.etcd.io/etcd/server/v3",), name="etcd"),
    Target("go", ("./coredns", "./pause", "github.com/rancher/local-path-provisioner")),
    Target("helm", ("helm.sh/helm/v3/cmd/helm",)),
)
ALL = tuple(name for target in TARGETS for name in target.outputs)


def inputs_hash(root: Path = HERE) -> str:
    """Return twelve hex digits that hash all inputs of the binaries: sources, pins, flags and kind of machine."""
    digest = hashlib.sha256()
    digest.update(repr((TARGETS, platform.system(), platform.machine())).encode())
    for module in sorted({target.module for target in TARGETS}):
        for path in sorted((root / module).rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def folder() -> Path:
    """Return the folder of the binaries of the current inputs, built or not."""
    return cache_folder() / "kubernetes" / inputs_hash() / "bin"


def ensure(steps: Steps, names: Iterable[str] = ALL) -> Path:
    """Build those of `names` that the cache lacks and return their folder. Raises ClusterError."""
    bin_folder = folder()
    wanted = tuple(names)
    if all((bin_folder / name).exists() for name in wanted):
        steps.say(f"Kubernetes {KUBERNETES_VERSION} binaries reused from {bin_folder}")
        mark_used(bin_folder.parent)
        return bin_folder
    if shutil.which("go") is None:
        raise ClusterError("Go is needed to build Kubernetes: put Go 1.26 on PATH (1.21 and newer fetch it)")
    bin_folder.mkdir(parents=True, exist_ok=True)
    with _one_builder(bin_folder.parent, steps):
        for target in TARGETS:
            absent = [n for n in target.outputs if n in wanted and not (bin_folder / n).exists()]
            if absent:
                _build(target.only(absent), bin_folder, steps)
        shutil.rmtree(bin_folder.parent / "gocache", ignore_errors=True)
    mark_used(bin_folder.parent)
    evict(bin_folder.parent.parent, steps.say)
    return bin_folder


@contextmanager
def _one_builder(home: Path, steps: Steps) -> Iterator[None]:
    """Hold the build lock of these inputs, so that two checkouts do not build the same thing at once."""
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with steps.step("wait for another build of the same binaries"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(target: Target, bin_folder: Path, steps: Steps) -> None:
    cache = bin_folder.parent / "gocache"
    env = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOCACHE": str(cache),
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOWORK": "off",
    }
    env.pop("GOOS", None)
    env.pop("GOARCH", None)
    module = HERE / target.module
    with (
        steps.step(f"build {' '.join(target.outputs)}") as step,
        tempfile.TemporaryDirectory(dir=bin_folder.parent, prefix="building-") as building,
    ):
        step.note = "downloading sources"
        listed = run(["go", "list", "-deps", *target.packages], env=env, cwd=module, limit_s=600)
        # A folder as output takes every binary by its package's name; one file renames it.
        output = Path(building, target.name) if target.name else Path(building)
        argv = ["go", "build", "-v", "-trimpath", "-ldflags", target.flags, "-o", str(output)]
        argv += target.packages
        step.note = ""
        _follow(argv, env, module, step, len(listed.splitlines()))
        for name in target.outputs:
            Path(building, name).replace(bin_folder / name)


def _follow(argv: list[str], env: dict[str, str], cwd: Path, step: Step, total: int) -> None:
    """Run a verbose build, showing the number of compiled packages in the step's note."""
    said: list[str] = []
    with subprocess.Popen(argv, env=env, cwd=cwd, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for count, line in enumerate(process.stderr, start=1):
            said.append(line)
            step.note = f"{count} of at most {total} packages"
    if process.returncode != 0:
        raise ClusterError(f"`{' '.join(argv[:3])}` failed:\n{tail(''.join(said))}")

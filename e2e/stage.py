"""Copies the sample base and adapters onto a PersistentVolumeClaim, through a pod that mounts it.

It works on any cluster, whatever its storage. A stamp tells a second run that there is nothing to do.
"""

import io
import subprocess
import tarfile
from pathlib import Path

from e2e.cluster import CommandFailedError, Kube
from e2e.samples import Samples

CLAIM = "mint-samples"
POD = "mint-samples-loader"
STAMP = ".staged"
UNPACK_TIMEOUT_S = 300


def folders(samples: Samples) -> dict[str, Path]:
    """Return the folders to copy, by their name on the claim."""
    return {"base": samples.base, "adapters": samples.adapters, "broken": samples.broken}


def stage(kube: Kube, namespace: str, wanted: dict[str, Path], digest: str, image: dict[str, str]) -> bool:
    """Copy each folder to `<claim>/<key>`; returns False if the claim already held this `digest`.

    `image` has the keys image, pullPolicy, pullSecrets (names, comma-separated) and runtimeClassName of an image with
    python3.
    """
    kube.apply(_claim(), namespace)
    _unload(kube, namespace)  # a pod left by an earlier run may have another image
    kube.apply(_pod(image), namespace)
    try:
        kube.wait(f"pod/{POD}", "Ready", namespace)
        return _fill(kube, namespace, wanted, digest)
    finally:
        _unload(kube, namespace)


def _fill(kube: Kube, namespace: str, wanted: dict[str, Path], digest: str) -> bool:
    try:
        if _exec(kube, namespace, f"import pathlib; print(pathlib.Path('/data/{STAMP}').read_text())") == digest:
            return False
    except CommandFailedError:
        pass  # no stamp yet: stage now
    for name, folder in wanted.items():
        _copy(kube, namespace, name, folder)
    _exec(kube, namespace, f"import pathlib; pathlib.Path('/data/{STAMP}').write_text('{digest}')")
    return True


def _unload(kube: Kube, namespace: str) -> None:
    kube.kubectl("delete", "pod", POD, "-n", namespace, "--ignore-not-found", "--grace-period=0", "--force")


def _exec(kube: Kube, namespace: str, code: str) -> str:
    return kube.kubectl("exec", "-n", namespace, POD, "--", "python3", "-c", code).strip()


def _copy(kube: Kube, namespace: str, name: str, folder: Path) -> None:
    unpack = (
        "import sys, tarfile, shutil; "
        f"shutil.rmtree('/data/{name}', ignore_errors=True); "
        "tarfile.open(fileobj=sys.stdin.buffer, mode='r|').extractall('/data', filter='data')"
    )
    command = [*kube.kubectl_command, "exec", "-i", "-n", namespace, POD, "--", "python3", "-c", unpack]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            with tarfile.open(fileobj=io.BufferedWriter(process.stdin), mode="w|") as tar:
                tar.add(folder, arcname=name, recursive=True, filter=_plain)
            process.stdin.close()
        except BrokenPipeError:
            pass  # the exit code below says why
        complaint = process.stderr.read().decode(errors="replace")
        if process.wait(UNPACK_TIMEOUT_S) != 0:
            raise CommandFailedError(f"copying {folder} to {namespace}/{CLAIM} failed: {complaint}")


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 65532
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return member


def _claim() -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
    }


def _pod(image: dict[str, str]) -> dict[str, object]:
    container = {
        "name": "loader",
        "image": image["image"],
        "imagePullPolicy": image["pullPolicy"],
        "command": ["python3", "-c", "import signal; signal.sigwait([signal.SIGTERM])"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    spec: dict[str, object] = {
        "containers": [container],
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}],
    }
    if image["pullSecrets"]:
        spec["imagePullSecrets"] = [{"name": name} for name in image["pullSecrets"].split(",")]
    if image["runtimeClassName"]:
        spec["runtimeClassName"] = image["runtimeClassName"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD}, "spec": spec}

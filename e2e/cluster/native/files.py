"""Writes the data folder of a native cluster: everything that its programs read when they start."""

import json
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.native import addons, config, images, pki
from e2e.cluster.native.components import components
from e2e.cluster.native.layout import Layout
from e2e.cluster.native.plan import Plan, to_text

FOLDERS = ("logs", "cni", "tmp", "volumes", "images")
PLAN_FILE = "plan.json"


def write(layout: Layout) -> Path:
    """Fill the data folder and return the path of the supervisor's plan. Only root can look inside."""
    data = layout.data
    data.mkdir(mode=0o700, parents=True)
    for name in FOLDERS:
        (data / name).mkdir()
    pki.write(layout, data / "pki")
    layout.kubeconfig.write_text((data / "pki" / "admin.kubeconfig").read_text())
    layout.kubeconfig.chmod(0o600)
    lent = images.host_paths()
    spec = images.host_spec(json.loads(run(["ctr", "oci", "spec"])), lent)
    texts = {
        "containerd.toml": config.containerd(),
        "cni/10-mint.conflist": config.cni(layout),
        "kubelet.json": config.kubelet(layout),
        "kube-proxy.json": config.kube_proxy(layout),
        "Corefile": config.corefile(layout),
        "host-spec.json": spec,
        "storage.json": addons.storage_config(data / "volumes"),
        "storage-pod.json": addons.storage_pod(),
        PLAN_FILE: to_text(Plan(layout, components(layout), (*lent, layout.binaries))),
    }
    for name, text in texts.items():
        (data / name).write_text(text)
    (data / "images" / "pause.tar").write_bytes(images.pause_archive(layout.binaries / "pause"))
    (data / "images" / "host.tar").write_bytes(images.host_archive())
    return data / PLAN_FILE

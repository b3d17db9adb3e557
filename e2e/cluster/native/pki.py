"""Keys, certificates and kubeconfigs of one cluster: one elliptic-curve authority, made quickly with openssl."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.native.layout import CLUSTER_DOMAIN, NODE_NAME, SERVICE_NETWORK, Layout

DAYS = 3650
# File name -> subject, for everything that authenticates with a client certificate.
CLIENTS: Mapping[str, str] = {
    "admin": "/O=system:masters/CN=mint-admin",
    "addons": "/O=system:masters/CN=mint-addons",
    "kubelet-client": "/O=system:masters/CN=kube-apiserver-kubelet-client",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
    "kubelet": f"/O=system:nodes/CN=system:node:{NODE_NAME}",
    "front-proxy": "/CN=front-proxy-client",
}
KUBECONFIGS = ("admin", "addons", "controller-manager", "scheduler", "proxy", "kubelet")


def server_names(layout: Layout) -> dict[str, str]:
    """Return file name -> subjectAltName, for the servers."""
    service = f"kubernetes.default.svc.{CLUSTER_DOMAIN}".split(".")
    dns = [f"DNS:{'.'.join(service[:length])}" for length in (1, 2, 3, len(service))]
    addresses = [f"IP:{address}" for address in (layout.node_ip, SERVICE_NETWORK[1], "127.0.0.1")]
    return {
        "apiserver": ",".join([*dns, "DNS:localhost", *addresses]),
        "kubelet-server": f"DNS:{NODE_NAME},IP:{layout.node_ip}",
    }


def write(layout: Layout, folder: Path) -> None:
    """Write the authority, every key pair, and `<client>.kubeconfig` for those that need one, into `folder`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority = ["-subj", "/CN=mint-cluster", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    _certificate(folder, "ca", authority)
    signed = ["-CA", str(folder / "ca.crt"), "-CAkey", str(folder / "ca.key")]
    leaf = [*signed, "-addext", "basicConstraints=critical,CA:FALSE"]
    for name, subject in CLIENTS.items():
        _certificate(folder, name, [*leaf, "-subj", subject, "-addext", "extendedKeyUsage=clientAuth"])
    for name, alternatives in server_names(layout).items():
        use = ["-addext", "extendedKeyUsage=serverAuth", "-addext", f"subjectAltName={alternatives}"]
        _certificate(folder, name, [*leaf, "-subj", f"/CN={name}", *use])
    _service_account_key(folder)
    for name in KUBECONFIGS:
        (folder / f"{name}.kubeconfig").write_text(kubeconfig(layout.api_url, folder, name))


def kubeconfig(server: str, folder: Path, client: str) -> str:
    """Return a kubeconfig (JSON, which is valid YAML) that includes the client's key pair."""

    def inline(name: str) -> str:
        return base64.b64encode((folder / name).read_bytes()).decode()

    user = {"client-certificate-data": inline(f"{client}.crt"), "client-key-data": inline(f"{client}.key")}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "mint", "cluster": {"server": server, "certificate-authority-data": inline("ca.crt")}}],
        "users": [{"name": client, "user": user}],
        "contexts": [{"name": "mint", "context": {"cluster": "mint", "user": client}}],
        "current-context": "mint",
    }
    return json.dumps(document, indent=1) + "\n"


def _certificate(folder: Path, name: str, options: list[str]) -> None:
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(folder / f"{name}.key")]
    crt = ["-days", str(DAYS), "-out", str(folder / f"{name}.crt")]
    run(["openssl", "req", "-x509", *key, *crt, *options])


def _service_account_key(folder: Path) -> None:
    private, public = folder / "service-account.key", folder / "service-account.pub"
    run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private])
    run(["openssl", "ec", "-in", private, "-pubout", "-out", public])

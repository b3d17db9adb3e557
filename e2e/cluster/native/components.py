"""The programs of a native cluster: their command lines, and what each waits for. Pure data for the supervisor."""

from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster.native.layout import NODE_NAME, POD_NETWORK, PRIVATE, SERVICE_NETWORK, Layout

API_READY = "https://127.0.0.1:6443/readyz"
PKI = f"{PRIVATE}/pki"


@dataclass(frozen=True)
class Component:
    """One program. `gate` is a URL that must answer 200 before it is started."""

    name: str
    argv: tuple[str, ...]
    gate: str | None = None
    env: dict[str, str] = field(default_factory=dict)


def flags(**options: object) -> tuple[str, ...]:
    """Return `--long-name=value` for each option, in the given order."""
    return tuple(f"--{name.replace('_', '-')}={value}" for name, value in options.items())


def components(layout: Layout) -> tuple[Component, ...]:
    """Return every program of the cluster in starting order."""
    return (_etcd(layout), _containerd(), _apiserver(layout), *_controllers(layout), *_node(layout), *_addons(layout))


def _etcd(layout: Layout) -> Component:
    # The data folder is deleted with the cluster, so there is no use in syncing it.
    options = flags(
        data_dir=f"{PRIVATE}/etcd",
        listen_client_urls="http://127.0.0.1:2379",
        advertise_client_urls="http://127.0.0.1:2379",
        listen_peer_urls="http://127.0.0.1:2380",
        quota_backend_bytes=4 * 2**30,
        log_level="warn",
    )
    return Component("etcd", (_binary(layout, "etcd"), *options, "--unsafe-no-fsync"))


def _containerd() -> Component:
    return Component("containerd", ("containerd", "--config", f"{PRIVATE}/containerd.toml"))


def _apiserver(layout: Layout) -> Component:
    serving = flags(
        advertise_address=layout.node_ip,
        secure_port=6443,
        tls_cert_file=f"{PKI}/apiserver.crt",
        tls_private_key_file=f"{PKI}/apiserver.key",
        etcd_servers="http://127.0.0.1:2379",
        service_cluster_ip_range=SERVICE_NETWORK,
    )
    who = flags(
        authorization_mode="Node,RBAC",
        enable_admission_plugins="NodeRestriction",
        client_ca_file=f"{PKI}/ca.crt",
        service_account_key_file=f"{PKI}/service-account.pub",
        service_account_signing_key_file=f"{PKI}/service-account.key",
        service_account_issuer="https://kubernetes.default.svc.cluster.local",
        allow_privileged="true",
    )
    to_kubelet = flags(
        kubelet_certificate_authority=f"{PKI}/ca.crt",
        kubelet_client_certificate=f"{PKI}/kubelet-client.crt",
        kubelet_client_key=f"{PKI}/kubelet-client.key",
        kubelet_preferred_address_types="InternalIP",
    )
    front_proxy = flags(
        proxy_client_cert_file=f"{PKI}/front-proxy.crt",
        proxy_client_key_file=f"{PKI}/front-proxy.key",
        requestheader_allowed_names="front-proxy-client",
        requestheader_client_ca_file=f"{PKI}/ca.crt",
        requestheader_extra_headers_prefix="X-Remote-Extra-",
        requestheader_group_headers="X-Remote-Group",
        requestheader_username_headers="X-Remote-User",
    )
    argv = (_binary(layout, "kube-apiserver"), *serving, *who, *to_kubelet, *front_proxy, "--profiling=false")
    return Component("kube-apiserver", argv)


def _controllers(layout: Layout) -> tuple[Component, ...]:
    manager = flags(
        **_identity("controller-manager"),
        allocate_node_cidrs="true",
        cluster_cidr=POD_NETWORK,
        node_cidr_mask_size=layout.pod_subnet.prefixlen,
        service_cluster_ip_range=SERVICE_NETWORK,
        cluster_signing_cert_file=f"{PKI}/ca.crt",
        cluster_signing_key_file=f"{PKI}/ca.key",
        root_ca_file=f"{PKI}/ca.crt",
        service_account_private_key_file=f"{PKI}/service-account.key",
        use_service_account_credentials="true",
        pvclaimbinder_sync_period="1s",  # a pod with a claim is ready in 5 s, not 13 s
        kube_api_qps=200,
        kube_api_burst=400,
    )
    scheduler = flags(**_identity("scheduler"))
    return (
        Component("kube-controller-manager", (_binary(layout, "kube-controller-manager"), *manager), API_READY),
        Component("kube-scheduler", (_binary(layout, "kube-scheduler"), *scheduler), API_READY),
    )


def _identity(name: str) -> dict[str, object]:
    kubeconfig = f"{PKI}/{name}.kubeconfig"
    return {
        "kubeconfig": kubeconfig,
        "authentication_kubeconfig": kubeconfig,
        "authorization_kubeconfig": kubeconfig,
        "bind_address": "127.0.0.1",
        "leader_elect": "false",
    }


def _node(layout: Layout) -> tuple[Component, ...]:
    kubelet = flags(
        config=f"{PRIVATE}/kubelet.json",
        kubeconfig=f"{PKI}/kubelet.kubeconfig",
        hostname_override=NODE_NAME,
        node_ip=layout.node_ip,
        root_dir=f"{PRIVATE}/kubelet",
    )
    proxy = flags(config=f"{PRIVATE}/kube-proxy.json")
    return (
        Component("kubelet", (_binary(layout, "kubelet"), *kubelet), API_READY),
        Component("kube-proxy", (_binary(layout, "kube-proxy"), *proxy), API_READY),
    )


def _addons(layout: Layout) -> tuple[Component, ...]:
    provisioner = (
        _binary(layout, "local-path-provisioner"),
        "start",
        *flags(
            config=f"{PRIVATE}/storage.json",
            helper_pod_file=f"{PRIVATE}/storage-pod.json",
            kubeconfig=f"{PKI}/addons.kubeconfig",
        ),
    )
    dns = (_binary(layout, "coredns"), "-conf", f"{PRIVATE}/Corefile")
    return (
        Component("coredns", dns, API_READY),
        Component("local-path-provisioner", provisioner, API_READY),
    )


def _binary(layout: Layout, name: str) -> str:
    return str(Path(layout.binaries) / name)

"""Configuration files of the node's programs, as pure text. Paths are those seen inside the cluster's namespaces."""

import json

from e2e.cluster.native.layout import (
    BRIDGE,
    CLUSTER_DOMAIN,
    HOST_DOMAIN,
    NODE_NAME,
    POD_NETWORK,
    PRIVATE,
    Layout,
)

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
CNI_PLUGINS = "/usr/lib/cni"
RUNTIME_HANDLER = "mint-host"
PAUSE_IMAGE = "mint.dev/pause:dev"


def containerd() -> str:
    """Return containerd's configuration, for versions 1.6 and newer.

    `restrict_oom_score_adj`: root without CAP_SYS_RESOURCE cannot lower the score, and every sandbox would fail.
    """
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "{PRIVATE}/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing"]

[grpc]
address = "{CONTAINERD_SOCKET}"

[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
disable_apparmor = true
restrict_oom_score_adj = true

[{cri}.cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{PRIVATE}/cni"

[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
SystemdCgroup = false

[{cri}.containerd.runtimes.{RUNTIME_HANDLER}]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "{PRIVATE}/host-spec.json"

[{cri}.containerd.runtimes.{RUNTIME_HANDLER}.options]
SystemdCgroup = false
"""


def cni(layout: Layout) -> str:
    """Return the pod network's configuration: a bridge, also the pods' gateway, and addresses from `host-local`."""
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "hairpinMode": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": f"{PRIVATE}/addresses",
            "ranges": [[{"subnet": str(layout.pod_subnet)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    document = {"cniVersion": "0.4.0", "name": "mint", "plugins": [bridge, portmap]}
    return json.dumps(document, indent=1) + "\n"


def kubelet(layout: Layout) -> str:
    """Return the kubelet's configuration. The disk is the machine's, so eviction starts only when it is near full."""
    pki = f"{PRIVATE}/pki"
    document = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "clusterDNS": [str(layout.dns_ip)],
        "clusterDomain": CLUSTER_DOMAIN,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "evictionHard": {"memory.available": "200Mi", "nodefs.available": "2%", "imagefs.available": "2%"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,  # there is no registry: a collected image cannot come back
        "makeIPTablesUtilChains": False,
        "maxPods": 250,
        "oomScoreAdj": 0,
        "podLogsDir": f"{PRIVATE}/logs/pods",
        "resolvConf": "",
        "syncFrequency": "5s",  # how soon pods see a changed Secret; the default is a minute
        "tlsCertFile": f"{pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet-server.key",
        "volumePluginDir": f"{PRIVATE}/volume-plugins",
    }
    return json.dumps(document, indent=1) + "\n"


def kube_proxy(layout: Layout) -> str:
    """Return kube-proxy's configuration; conntrack's limits are machine-wide, so they stay unchanged."""
    document = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": f"{PRIVATE}/pki/proxy.kubeconfig"},
        "clusterCIDR": str(POD_NETWORK),
        "conntrack": {"maxPerCore": 0, "min": 0},
        "healthzBindAddress": f"{layout.node_ip}:10256",
        "hostnameOverride": NODE_NAME,
        "oomScoreAdj": 0,
    }
    return json.dumps(document, indent=1) + "\n"


def corefile(layout: Layout) -> str:
    """Return CoreDNS's configuration. `hosts` precedes `kubernetes` in plugin order, so it has its own server."""
    reverse = "in-addr.arpa ip6.arpa"
    return f"""{HOST_DOMAIN}:53 {{
    bind {layout.dns_ip}
    errors
    hosts {{
        {layout.machine_ip} {HOST_DOMAIN}
    }}
}}
{CLUSTER_DOMAIN}:53 in-addr.arpa:53 ip6.arpa:53 {{
    bind {layout.dns_ip}
    ready {layout.node_ip}:8181
    errors
    kubernetes {CLUSTER_DOMAIN} {reverse} {{
        kubeconfig {PRIVATE}/pki/addons.kubeconfig
        pods insecure
        ttl 5
    }}
}}
"""

"""A real API server for tests: etcd and kube-apiserver alone on loopback, with MinT's CRDs.

No kubelet, scheduler or controllers run: objects are stored, validated, defaulted and authorised (RBAC) as on any
cluster, and nothing else happens to them. Pods are accepted without a service account object.
"""

import secrets
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import create_default_context

from kubernetes import client, config

from e2e.cluster.native import binaries as built
from tests.redis_process import free_port
from tests.waiting import block_until

ROOT = Path(__file__).resolve().parents[1]
KINDS = {"BaseModel", "AdapterWave"}
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05

_KUBECONFIG = """\
apiVersion: v1
kind: Config
current-context: test
contexts: [{{name: test, context: {{cluster: test, user: admin}}}}]
clusters: [{{name: test, cluster: {{server: "{url}", certificate-authority: "{certificate}"}}}}]
users: [{{name: admin, user: {{token: "{token}"}}}}]
"""


class KubectlError(RuntimeError):
    """kubectl exited non-zero; the message is what it printed."""


@dataclass(frozen=True)
class ApiServer:
    """A running API server: its address and the credentials of its administrator."""

    url: str
    token: str
    certificate: Path
    kubeconfig: Path
    binaries: Path
    etcd: str = ""  # its store's address

    def client(self) -> client.ApiClient:
        """A client of the Python `kubernetes` package, as administrator."""
        made: client.ApiClient = config.new_client_from_config(str(self.kubeconfig))  # type: ignore[no-untyped-call]
        return made

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it printed. Raises KubectlError."""
        command = [str(self.binaries / "kubectl"), "--kubeconfig", str(self.kubeconfig), *args]
        env = {"HOME": str(self.kubeconfig.parent), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, input=stdin, env=env, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise KubectlError(done.stderr or done.stdout)
        return done.stdout

    def apply_crds(self) -> None:
        """Apply crds/, and wait until kubectl finds their kinds.

        `kubectl wait` would fail on a definition that has no conditions yet. Kinds are established some time before
        they are listed.
        """
        self.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        block_until(lambda: self._kinds() >= KINDS)

    def _kinds(self) -> set[str]:
        try:
            found = self.kubectl("api-resources", "--api-group=mint.dev", "--no-headers")
        except KubectlError:  # while another group's discovery is not complete
            return set()
        return {line.split()[-1] for line in found.splitlines()}

    def namespace(self, name: str) -> str:
        """Create a namespace; return its name."""
        self.kubectl("create", "namespace", name)
        return name


def binaries() -> Path:
    """The folder with kube-apiserver, kubectl, etcd and helm that `make tools` built."""
    folder = built.folder()
    assert (folder / "kube-apiserver").is_file(), f"no kube-apiserver in {folder}; `make tools` builds it"
    return folder


@contextmanager
def serve(folder: Path) -> Iterator[ApiServer]:
    """Run etcd and kube-apiserver with their files in `folder`, apply crds/, and end both afterwards."""
    with serve_without_crds(folder) as server:
        server.apply_crds()
        yield server


@contextmanager
def serve_without_crds(folder: Path) -> Iterator[ApiServer]:
    """Run the same server without the CRDs applied."""
    with ExitStack() as stack:
        etcd_port, peer_port, api_port = (free_port() for _ in range(3))
        token = secrets.token_hex(16)
        certificate, key = _certificate(folder)
        etcd = f"http://127.0.0.1:{etcd_port}"
        server = ApiServer(
            f"https://127.0.0.1:{api_port}", token, certificate, folder / "kubeconfig", binaries(), etcd
        )
        server.kubeconfig.write_text(_KUBECONFIG.format(url=server.url, certificate=certificate, token=token))
        (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
        stack.enter_context(_running(folder, "etcd", _etcd(folder, server.binaries, etcd_port, peer_port)))
        command = _apiserver(folder, server.binaries, etcd, api_port, certificate, key)
        process = stack.enter_context(_running(folder, "kube-apiserver", command))
        _await_ready(server, process, folder / "kube-apiserver.log")
        yield server


def _etcd(folder: Path, binaries: Path, port: int, peer_port: int) -> list[str]:
    url, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    command = [str(binaries / "etcd"), "--data-dir", str(folder / "etcd"), "--unsafe-no-fsync"]
    command += ["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", peer]
    return [*command, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]


def _apiserver(folder: Path, binaries: Path, etcd: str, port: int, certificate: Path, key: Path) -> list[str]:
    return [
        str(binaries / "kube-apiserver"),
        f"--etcd-servers={etcd}",
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--cert-dir={folder}",
        f"--tls-cert-file={certificate}",
        f"--tls-private-key-file={key}",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        "--service-account-issuer=https://127.0.0.1",
        f"--service-account-key-file={certificate}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--disable-admission-plugins=ServiceAccount",
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",  # as on OpenShift
    ]


def _certificate(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1 and its key, which also signs service account tokens."""
    certificate, key = folder / "server.crt", folder / "server.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=127.0.0.1", "-out", str(certificate), "-keyout", str(key)]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@contextmanager
def _running(folder: Path, name: str, command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{name}.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_ready(server: ApiServer, process: subprocess.Popen[bytes], log: Path) -> None:
    context = create_default_context(cafile=str(server.certificate))
    request = urllib.request.Request(f"{server.url}/readyz", headers={"Authorization": f"Bearer {server.token}"})
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5, context=context):
                return
        except OSError as error:  # refused, reset, or 500 while its start-up hooks run
            ended = process.poll()
            if ended is not None:
                raise RuntimeError(f"kube-apiserver exited {ended}: {log.read_text()[-4000:]}") from error
            if time.monotonic() > deadline:
                raise TimeoutError(f"kube-apiserver is not ready after {START_TIMEOUT_S:.0f} s; see {log}") from error
            time.sleep(POLL_S)

"""Debian's part of the native cluster: installed if missing, without starting or enabling services."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.commands import run
from e2e.cluster.errors import ClusterError
from e2e.cluster.progress import Steps

# What must be found -> the package that provides it. A name without a slash is looked up on PATH.
NEEDED: Mapping[str, str] = {
    "g++": "g++",
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "nft": "nftables",
    "conntrack": "conntrack",
    "redis-server": "redis-server",
    "ip": "iproute2",
    "openssl": "openssl",
    "unshare": "util-linux",
    "mount": "mount",
}
# What only tests need, not clusters: a browser, for the gateway's page.
FOR_TESTS: Mapping[str, str] = {"chromium": "chromium", "chromedriver": "chromium-driver"}
SERVICES = ("containerd", "redis-server")  # units that Debian enables when it installs them
POLICY = Path("/usr/sbin/policy-rc.d")
REFUSE = "#!/bin/sh\nexit 101\n"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INSTALL_LIMIT_S = 600.0


def found(name: str) -> bool:
    """Whether the file exists, or the program is on the system's PATH."""
    return Path(name).exists() if "/" in name else shutil.which(name, path=SYSTEM_PATH) is not None


def missing(needed: Mapping[str, str]) -> list[str]:
    """Return the Debian packages to install, each once, in the order of `needed`."""
    return list(dict.fromkeys(package for name, package in needed.items() if not found(name)))


def ensure(steps: Steps, needed: Mapping[str, str] = NEEDED) -> None:
    """Install what is missing. Raises ClusterError without root or apt-get, or if apt-get fails."""
    packages = missing(needed)
    if not packages:
        steps.say("system packages reused")
        return
    words = " ".join(packages)
    command = f"apt-get install --no-install-recommends {words}"
    if shutil.which("apt-get", path=SYSTEM_PATH) is None:
        raise ClusterError(f"missing: {words}; install them with this system's package manager")
    if os.geteuid() != 0:
        raise ClusterError(f"missing: {words}; run `{command}` as root, or run this as root")
    with steps.step(f"install {words}"), services_refused():
        try:
            _install(packages)
        except ClusterError:
            # The usual reasons are package lists that are absent (fresh containers) or stale.
            run(["apt-get", "update", "-qq"], limit_s=INSTALL_LIMIT_S)
            _install(packages)
        _disable(packages)
    left = missing(needed)
    if left:
        raise ClusterError(f"apt-get installed {words}, and still these are missing: {' '.join(left)}")


def _install(packages: list[str]) -> None:
    options = ["-qq", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "install", *options, *packages], env=env, limit_s=INSTALL_LIMIT_S)


def _disable(packages: list[str]) -> None:
    """Keep the services just installed from starting at the next boot."""
    units = [unit for unit in SERVICES if unit in packages]
    if units and shutil.which("systemctl", path=SYSTEM_PATH) is not None:
        run(["systemctl", "disable", "--quiet", *units])


@contextmanager
def services_refused(policy: Path = POLICY) -> Iterator[None]:
    """Keep Debian's maintainer scripts from starting services while the block runs; then restore `policy`."""
    kept = policy.with_name(f"{policy.name}.before-mint")
    if policy.exists():
        policy.rename(kept)
    policy.write_text(REFUSE)
    policy.chmod(0o755)
    try:
        yield
    finally:
        if kept.exists():
            kept.replace(policy)
        else:
            policy.unlink()

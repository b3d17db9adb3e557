"""Debian's packages: only missing ones are installed, and the machine's policy is left as it was."""

import subprocess
from pathlib import Path

import pytest

from e2e.cluster.native import packages
from e2e.cluster.native.packages import services_refused


def test_a_package_is_asked_for_once_and_only_when_missing() -> None:
    assert packages.missing({"sh": "dash", "/no/such": "one", "no-such-program": "one"}) == ["one"]


def test_services_are_refused_while_packages_are_installed(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    with services_refused(policy):
        assert subprocess.run([policy, "redis-server", "start"], check=False).returncode == 101
    assert list(tmp_path.iterdir()) == []


def test_an_existing_policy_comes_back(tmp_path: Path) -> None:
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(ValueError, match="apt"), services_refused(policy):
        raise ValueError("apt failed")
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"
    assert list(tmp_path.iterdir()) == [policy]

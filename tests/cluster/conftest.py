"""A layout from which configurations are rendered."""

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from e2e.cluster.native.layout import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "cluster", tmp_path / "bin", IPv4Network("10.213.8.0/30"))

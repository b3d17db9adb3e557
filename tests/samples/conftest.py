"""Fixtures of the samples' tests. The samples are made once per machine and reused afterwards."""

import pytest

from e2e.samples import Samples, prepare


@pytest.fixture(scope="session")
def samples() -> Samples:
    """The base, its adapters and the broken adapters."""
    return prepare()

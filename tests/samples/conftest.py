"""The samples, made once per machine and reused afterwards."""

import pytest

from e2e.samples import Samples, prepare


@pytest.fixture(scope="session")
def samples() -> Samples:
    """The base, the adapters and the broken ones."""
    return prepare()

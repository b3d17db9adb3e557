"""Fixtures of the CRD tests."""

import pytest

from tests.apiserver import ApiServer
from tests.crds.admission import Admission


@pytest.fixture(scope="session")
def admission(api_server: ApiServer) -> Admission:
    """Dry runs against the API server."""
    return Admission(api_server)

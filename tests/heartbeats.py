"""Heartbeats of engines in a test's own process."""

import pytest


def expire_late(patch: pytest.MonkeyPatch) -> None:
    """Let heartbeats expire only after the test, however long the machine stalls."""
    patch.setattr("mint_contracts.map_reporter.HEARTBEAT_TTL_S", 600.0)
    patch.setattr("mint_contracts.map_reporter.TELLING_TTL_S", 6000.0)

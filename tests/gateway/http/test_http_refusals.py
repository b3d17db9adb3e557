"""HTTP requests that the gateway refuses before it knows what they ask for."""

import pytest
from structlog.testing import capture_logs

from mint_gateway.http import door
from tests.gateway.http_requests import CHAT, TEXT, post
from tests.gateway.scene import Scene


async def test_requests_refused_before_they_are_parsed_are_counted_and_logged(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any other: a person has only the log, and an alert compares the counts."""
    monkeypatch.setattr(door, "MOST_ARRIVING", 1 << 10)  # beside each one's own allowance
    await scene.with_engine()
    counted = scene.gateway.metrics.registry.get_sample_value
    with capture_logs() as logs:
        _, _, headers = await post(scene, TEXT, b"{", X_Request_Id="r-1")
        assert headers["X-Request-Id"] == "r-1"
        assert (await post(scene, CHAT, b" " * 70_000, X_Request_Id="r-2"))[0] == 429
        monkeypatch.setattr(door, "MOST_BYTES", 1000)
        status, _, headers = await post(scene, TEXT, b" " * 2000, X_Request_Id="r-3")
        assert (status, headers["X-Request-Id"]) == (413, "r-3")
    lines = [line for line in logs if line["event"] == "request"]
    assert [(line["request_id"], line["code"]) for line in lines] == [
        ("r-1", "INVALID_ARGUMENT"),
        ("r-2", "RESOURCE_EXHAUSTED"),
        ("r-3", "INVALID_ARGUMENT"),
    ]
    assert lines[1]["error"].startswith("Overloaded: gateway: ")
    assert "body size 1000 exceeded" in lines[2]["error"]
    for code, count in (("INVALID_ARGUMENT", 2), ("RESOURCE_EXHAUSTED", 1)):
        assert counted("mint_gateway_requests_total", {"code": code, "client": ""}) == count

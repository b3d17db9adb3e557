"""LeaderWorkerSet's API, which not every cluster has."""

import time
from pathlib import Path

from mint_operator.planning.groups import API_VERSION
from tests.apiserver import POLL_S, START_TIMEOUT_S, ApiServer, KubectlError


def serve_groups(api_server: ApiServer) -> None:
    """Add the API, and wait until it is served; `kubectl wait` would fail on a definition that has no status yet."""
    api_server.kubectl("apply", "--server-side", "-f", str(Path(__file__).with_suffix(".yaml")))
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            api_server.kubectl("get", "--raw", f"/apis/{API_VERSION}/leaderworkersets")
        except KubectlError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        else:
            return

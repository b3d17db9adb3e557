"""`kubectl port-forward` while a block runs."""

import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.cluster import Kube

_READY = re.compile(r"Forwarding from (127\.0\.0\.1:\d+) ->")
START_TIMEOUT_S = 20


@contextmanager
def forward(kube: Kube, target: str, port: int, namespace: str) -> Iterator[str]:
    """Forward a free local port to `port` of `target` (e.g. "service/mint-gateway"); yields "127.0.0.1:PORT"."""
    command = [*kube.kubectl_command, "-n", namespace, "port-forward", target, f":{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        killer = threading.Timer(START_TIMEOUT_S, process.kill)
        killer.start()
        seen = []
        try:
            for line in process.stdout:
                seen.append(line)
                if match := _READY.search(line):
                    break
            else:
                raise TimeoutError(f"port-forward to {target} did not start: {''.join(seen)}")
        finally:
            killer.cancel()
        # Read what kubectl prints later (one line per connection), so that it does not fill the pipe.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            yield match.group(1)
        finally:
            process.terminate()
            process.wait(10)

"""Checks the health of a native cluster's programs, from the machine, without starting kubectl."""

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from e2e.cluster.commands import TAIL_LINES, tail
from e2e.cluster.native.layout import NODE_NAME, Layout

ASK_LIMIT_S = 2.0
TROUBLED_STARTS = 4  # a program that ended after this many starts will not recover by itself


def ask(layout: Layout, path: str) -> dict[str, Any] | str | None:
    """Return the API server's answer to a GET of `path` (JSON, or its text); None if it does not answer with 200."""
    pki = layout.data / "pki"
    try:
        tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        with urllib.request.urlopen(f"{layout.api_url}{path}", context=tls, timeout=ASK_LIMIT_S) as reply:
            text: str = reply.read().decode()
    except (OSError, urllib.error.URLError):
        return None
    if not text.startswith("{"):
        return text
    document: dict[str, Any] = json.loads(text)
    return document


def api_ready(layout: Layout) -> bool:
    """Whether the API server reports that it is ready."""
    return ask(layout, "/readyz") == "ok"


def node_ready(layout: Layout) -> bool:
    """Whether the node exists and is Ready. The data is never older than the processes, so this is up to date."""
    node = ask(layout, f"/api/v1/nodes/{NODE_NAME}")
    if not isinstance(node, dict):
        return False
    conditions = node.get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def account_ready(layout: Layout) -> bool:
    """Whether the default namespace has its service account, without which pods in it are refused."""
    return ask(layout, "/api/v1/namespaces/default/serviceaccounts/default") is not None


def dns_ready(layout: Layout) -> bool:
    """Whether CoreDNS has read the services for the first time."""
    try:
        with urllib.request.urlopen(f"http://{layout.node_ip}:8181/ready", timeout=ASK_LIMIT_S):
            return True
    except (OSError, urllib.error.URLError):
        return False


def component_states(data: Path) -> dict[str, dict[str, Any]]:
    """Return the supervisor's report on each component: running, starts, and how it last ended."""
    try:
        states: dict[str, dict[str, Any]] = json.loads((data / "components.json").read_text())
    except FileNotFoundError:
        return {}
    return states


def troubled(data: Path) -> str | None:
    """Return the name of a component that keeps ending, if there is one."""
    for name, state in component_states(data).items():
        if not state["running"] and state["starts"] >= TROUBLED_STARTS:
            return name
    return None


def log_tail(data: Path, component: str) -> str:
    """Return the last lines of a component's log, headed by its path."""
    path = data / "logs" / f"{component}.log"
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return f"{path} does not exist"
    return f"last lines of {path}:\n{tail(text, TAIL_LINES)}"

"""What the supervisor is given at its start: the layout, the components, and the paths that must stay visible."""

import json
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network
from pathlib import Path

from e2e.cluster.native.components import Component
from e2e.cluster.native.layout import Layout


@dataclass(frozen=True)
class Plan:
    """One cluster to run; `needed` are the machine's paths that its programs and containers use."""

    layout: Layout
    components: tuple[Component, ...]
    needed: tuple[Path, ...]


def to_text(plan: Plan) -> str:
    """Return the plan as JSON."""
    document = {
        "data": str(plan.layout.data),
        "binaries": str(plan.layout.binaries),
        "link": str(plan.layout.link),
        "needed": [str(path) for path in plan.needed],
        "components": [asdict(component) for component in plan.components],
    }
    return json.dumps(document, indent=1) + "\n"


def from_text(text: str) -> Plan:
    """Return the plan in JSON from `to_text`."""
    document = json.loads(text)
    layout = Layout(Path(document["data"]), Path(document["binaries"]), IPv4Network(document["link"]))
    components = tuple(Component(**{**c, "argv": tuple(c["argv"])}) for c in document["components"])
    return Plan(layout, components, tuple(Path(path) for path in document["needed"]))

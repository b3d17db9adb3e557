"""The Kubernetes objects of a base's engines, as the operator renders them."""

from typing import Any

import msgspec

from mint_operator.planning.manifests import Manifest, render
from mint_operator.planning.snapshot import ObservedBase, Release
from tests.operator.worlds import RELEASE, base

Body = dict[str, Any]


def with_spec(**changes: Any) -> ObservedBase:
    return msgspec.structs.replace(base(), spec=msgspec.structs.replace(base().spec, **changes))


def rendered(of: ObservedBase, release: Release = RELEASE, engines: int = 2) -> dict[str, Manifest]:
    return {each.kind: each for each in render(of, release, engines)}


def pod(of: ObservedBase, release: Release = RELEASE) -> Body:
    found: Body = rendered(of, release)["StatefulSet"].body["spec"]["template"]["spec"]
    return found


def container(of: ObservedBase, release: Release = RELEASE) -> Body:
    [only] = pod(of, release)["containers"]
    found: Body = only
    return found

"""`python -m e2e.demo up|train|down`: the quick start, step by step, each step shown while it runs.

A second `up` finds everything in place, says so, and only asks the questions again.
"""

import argparse
import asyncio
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from e2e import cluster as clusters
from e2e import guest, lessons, release, stage
from e2e.cluster import Cluster, ClusterError, Kube
from e2e.cluster.paths import data_folder
from e2e.cluster.progress import Steps
from e2e.forward import forward
from e2e.samples import TRAINED, prepare, questions
from e2e.world import image_of
from mint_contracts.settings import GATEWAY_PORT
from mint_gateway.cli.gateway_options import GATEWAY

NAMESPACE = "mint-demo"
ASKED = 3
NEW_TOKENS = "48"
LESSONS = "lessons"  # the wave of crds/samples/adapterwave-train.yaml
PLAIN_WIDTH = "150"  # columns of a log file


def up(context: str | None) -> None:
    """Get a cluster, install MinT, apply crds/samples, and ask. Raises ClusterError."""
    steps = Steps(title="demo")
    samples = prepare(steps.say)
    cluster = clusters.up(context=context, steps=steps)
    kube = cluster.kube
    install(cluster, steps)
    with steps.step("samples onto the claim mint-samples") as step:
        copied = stage.stage(kube, NAMESPACE, stage.folders(samples), samples.root.name, image_of(cluster.values()))
        step.note = "copied" if copied else "reused"
    for name in ("basemodel", "adapterwave"):
        _apply(kube, steps, name)
    for wanted in ("basemodel/smollm2", "adapterwave/demo"):
        with steps.step(f"kubectl wait --for=condition=Ready {wanted}"):
            kube.wait(wanted, "Ready", NAMESPACE, timeout_s=600)
    print(kube.kubectl("get", "basemodels,adapterwaves", "-n", NAMESPACE))
    with forward(kube, "service/mint-gateway", GATEWAY_PORT, release.NAMESPACE) as gateway:
        _ask(gateway)
    _farewell(cluster)


def install(cluster: Cluster, steps: Steps) -> None:
    """Install MinT, or upgrade the release of an earlier run, and create the demo's namespace.

    Raises ClusterError if somebody else has installed MinT.
    """
    with steps.step("helm upgrade --install mint charts/mint") as step:
        known = release.installed(cluster.kube)
        guest.install(cluster, _values(cluster))
        step.note = "reusing the release" if known else "first install"
    guest.add_namespace(cluster, NAMESPACE)


def train(context: str | None) -> None:
    """Train the sample's policies on the demo's base, show their rewards, and ask them. Raises ClusterError."""
    up(context)
    steps = Steps(title="demo")
    kube = clusters.up(context=context, steps=steps).kube
    _apply(kube, steps, "adapterwave-train")
    picture = str(data_folder() / "rewards.png")
    with forward(kube, "service/mint-gateway", GATEWAY_PORT, release.NAMESPACE) as gateway:
        _mint(gateway, "wave", "watch", "-n", NAMESPACE, LESSONS, timeout_s=3600)
        _mint(gateway, "wave", "plot", "-n", NAMESPACE, LESSONS, "-o", picture)
        with steps.step(f"kubectl wait --for=condition=Ready adapterwave/{LESSONS}"):
            kube.wait(f"adapterwave/{LESSONS}", "Ready", NAMESPACE, timeout_s=600)
        print(kube.kubectl("get", "adapterwaves", "-n", NAMESPACE))
        train = kube.get("adapterwave", LESSONS, NAMESPACE)["spec"]["train"]
        if not asyncio.run(lessons.show(gateway, f"{NAMESPACE}/smollm2", f"{NAMESPACE}/{LESSONS}", train)):
            raise ClusterError(f"wave {LESSONS}: not every policy has learnt its lesson; see the table above")


def _apply(kube: Kube, steps: Steps, name: str) -> None:
    with steps.step(f"kubectl apply -f crds/samples/{name}.yaml") as step:
        said = kube.kubectl("apply", "-n", NAMESPACE, "-f", str(release.ROOT / "crds" / "samples" / f"{name}.yaml"))
        step.note = "reused" if "unchanged" in said else "applied"


def _values(cluster: Cluster) -> Path:
    path = data_folder() / "demo-values.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(cluster.values()))
    return path


def _ask(gateway: str) -> None:
    base = ["--base", f"{NAMESPACE}/smollm2"]
    adapters = [word for adapter in TRAINED for word in ("--adapter", adapter.name)]
    for text in questions()[:ASKED]:
        _mint(gateway, "ask", *base, "--bare", *adapters, "--max-tokens", NEW_TOKENS, text)
    _mint(gateway, "placements", *base)


def _mint(gateway: str, *words: str, timeout_s: float = 300) -> None:
    print(f"\n$ mint {shlex.join(words)}", flush=True)
    program = Path(sys.executable).with_name("mint")
    wide = {} if sys.stdout.isatty() else {"COLUMNS": PLAIN_WIDTH}
    subprocess.run([str(program), *words], check=True, timeout=timeout_s, env=os.environ | {GATEWAY: gateway} | wide)


def _farewell(cluster: Cluster) -> None:
    print(
        "\nTo continue by hand:\n"
        '  eval "$(.venv/bin/python -m e2e.cluster env)"   # kubectl and helm for this cluster\n'
        f"  kubectl get mint -n {NAMESPACE}\n"
        f"  kubectl port-forward -n {release.NAMESPACE} service/mint-gateway {GATEWAY_PORT} &\n"
        f'  .venv/bin/mint ask --adapter {TRAINED[0].name} "Where is the sea?"\n'
        + ("  make demo-down   # removes everything again\n" if cluster.backend != "context" else "")
    )


def down(context: str | None) -> None:
    """Remove what `up` made: the whole cluster, or, on a cluster of your own, what has the demo's label."""
    cluster = clusters.find(context=context)
    if cluster is not None and cluster.backend == "context":
        guest.leave(cluster.kube, Steps(title="demo"))
    clusters.down(context=context)


def main() -> int:
    """Run the command line; returns the exit status. Errors are one line."""
    parser = argparse.ArgumentParser(prog="python -m e2e.demo", description="MinT's quick start on a real cluster.")
    parser.add_argument(
        "verb", choices=["up", "train", "down"], help="run the demo, train policies in addition, or remove everything"
    )
    parser.add_argument("--context", help="use this context of an existing kubeconfig")
    args = parser.parse_args()
    try:
        {"up": up, "train": train, "down": down}[args.verb](args.context)
    except (ClusterError, TimeoutError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main())

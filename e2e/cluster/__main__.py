"""`python -m e2e.cluster`: a cluster for this checkout, from the command line."""

import argparse
import shlex
import sys
from pathlib import Path

from e2e import cluster
from e2e.cluster import choice
from e2e.cluster.errors import ClusterError
from e2e.cluster.native import backend as native
from e2e.cluster.native import packages
from e2e.cluster.progress import Steps
from e2e.cluster.values import as_yaml

COMMANDS = {
    "up": "create the cluster, or reuse it if it is up and healthy",
    "down": "delete it and everything that belongs to it except the cache",
    "status": "show node and components; exit status 1 if the cluster does not answer",
    "kubeconfig": "print the path of its kubeconfig",
    "env": "print shell lines that set KUBECONFIG and PATH",
    "values": "print the Helm values for this cluster, to be merged over those of charts/mint",
    "tools": "install and build what the native backend and the tests need, without starting a cluster",
    "import-image": "load a docker or OCI archive into its nodes",
}


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser; options may come before or after the command."""
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument("--backend", choices=choice.NAMES, help="force a backend instead of choosing one")
    options.add_argument("--context", metavar="NAME", help="use this context of an existing kubeconfig")
    root = argparse.ArgumentParser(prog="python -m e2e.cluster", description=__doc__, parents=[options])
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, parents=[options])
        if name == "import-image":
            command.add_argument("archive", type=Path)
    return root


def main(arguments: list[str]) -> int:
    """Run one command; returns the exit status."""
    given = parser().parse_args(arguments)
    wanted, context = getattr(given, "backend", None), getattr(given, "context", None)
    try:
        return _run(given, wanted, context)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1


def _run(given: argparse.Namespace, wanted: str | None, context: str | None) -> int:
    match given.command:
        case "up":
            cluster.up(wanted, context)
        case "down":
            cluster.down(wanted, context)
        case "tools":
            native.prepare(Steps())
            packages.ensure(Steps(), packages.FOR_TESTS)
        case "import-image":
            cluster.backend(wanted, context).import_image(given.archive.resolve())
        case "status":
            backend = cluster.backend(wanted, context)
            print("\n".join(backend.status()))
            return 0 if backend.find() else 1
        case asked:
            print(_answer(asked, _found(wanted, context)))
    return 0


def _found(wanted: str | None, context: str | None) -> cluster.Cluster:
    found = cluster.find(wanted, context)
    if found is None:
        raise ClusterError("the cluster does not answer: run `python -m e2e.cluster up`")
    return found


def _answer(asked: str, found: cluster.Cluster) -> str:
    if asked == "kubeconfig":
        return str(found.kubeconfig)
    if asked == "values":
        return as_yaml(found.values())
    env = found.env()
    return "\n".join(f"export {name}={shlex.quote(env[name])}" for name in ("KUBECONFIG", "PATH"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

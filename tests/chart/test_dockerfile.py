"""What pods need in their images, and what the Dockerfile's build needs from the repository."""

import re
import tomllib
from collections.abc import Iterator

from mint_operator.planning.podspec import USER
from tests.apiserver import ROOT
from tests.chart.rendering import DEFAULTS, container, pod, render, workloads
from tests.operator.rendered import container as engine_container
from tests.operator.worlds import base

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OURS = ("mint-operator", "mint-gateway")


def needed() -> Iterator[str]:
    """Return what a build of the package reads, relative to the root."""
    project, build = PROJECT["project"], PROJECT["tool"]["hatch"]["build"]
    yield from ("pyproject.toml", "constraints.txt", project["readme"], build["hooks"]["custom"]["path"])
    yield from project["license-files"]
    yield from build["targets"]["wheel"]["packages"]


def stage_of(name: str) -> tuple[str, str]:
    """Return what a stage of the Dockerfile begins from, and its text."""
    [found] = re.findall(rf"^FROM (\S+) AS {name}$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    return found[0], found[1]


def user_of(stage: str) -> str:
    """Return the user that a stage of the Dockerfile ends with, or the stage that it begins from."""
    parent, text = stage_of(stage)
    users = re.findall(r"^USER (.+)$", text, re.MULTILINE)
    return users[-1] if users else user_of(parent)


def test_pods_start_programs_that_the_distribution_has() -> None:
    made = workloads(render(DEFAULTS))
    commands = [container(made[name])["command"] for name in OURS] + [engine_container(base())["command"]]
    assert {command[0] for command in commands} <= PROJECT["project"]["scripts"].keys()


def test_pods_run_as_the_user_of_their_image() -> None:
    made = workloads(render(DEFAULTS))
    users = {pod(made[name])["securityContext"]["runAsUser"] for name in OURS} | {USER}
    assert [f"{user}:{user}" for user in users] == [user_of("control")] == [user_of("engine")]


def test_engines_find_the_driver_where_gke_mounts_it() -> None:
    """There no hook of NVIDIA's adds it to the loader's cache, and torch would see no GPU."""
    _, text = stage_of("engine")
    assert re.findall(r"^ENV LD_LIBRARY_PATH=(.*)$", text, re.MULTILINE) == ["/usr/local/nvidia/lib64"]


def test_the_build_gets_every_file_that_it_reads() -> None:
    given = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert [path for path in needed() if not {path, path.split("/")[0]} & set(given)] == []


def test_dependencies_are_installed_around_all_that_the_package_names() -> None:
    [copied] = re.findall(r"^COPY (pyproject\.toml .*) \./$", DOCKERFILE, re.MULTILINE)
    [touched] = re.findall(r"^RUN touch (.*) && \\$", DOCKERFILE, re.MULTILINE)
    [packages] = re.findall(r"for package in (.*); do", DOCKERFILE)
    assert {*copied.split(), *touched.split(), *packages.split()} == set(needed())

"""The native backend's tests run only where it would be chosen: as root, on a machine without a Docker engine."""

import os

from e2e.cluster.choice import docker_answers

collect_ignore = ["test_native.py"] if os.geteuid() != 0 or docker_answers() else []

"""The native backend is tested where it would be chosen: by root, on a machine without a Docker engine."""

import os

from e2e.cluster.choice import docker_answers

collect_ignore = ["test_native.py"] if os.geteuid() != 0 or docker_answers() else []

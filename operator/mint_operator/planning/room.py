"""Tells lack of room for a pod, which others take, from faults of its own spec, with which it can never run. Pure.

By the words of kube-scheduler, kubelet and Kubernetes' controllers. What is unknown counts as a fault of the spec,
for which no working engine is ended. So do nodes that the pod's selector, node affinity or tolerations exclude, and
cordoned ones: an engine that restarts could not run there either.
"""

import re

from mint_contracts.records import Failure

_NODES_FULL = (
    "Insufficient |Too many pods|anti-affinity rules|topology spread constraints(?! \\(missing)|free ports|"
    "max volume count|ReadWriteOncePod"
)
_LACKS = {  # by reason: what the message of a pod without room contains
    "Unschedulable": _NODES_FULL,
    "SchedulingGated": "",  # a queue such as Kueue's has not admitted it
    "FailedCreate": "exceeded quota",
    "FailedAttachVolume": "Multi-Attach",
    "FailedMount": r"unattached volumes=\[[^\]]",  # after a Multi-Attach error, which is reported only once
}


def lacks_room(trouble: Failure) -> bool:
    """Whether a pod does not run only because others take the room: on nodes, in a quota or queue, or its volume."""
    words = _LACKS.get(trouble.reason)
    return words is not None and re.search(words, trouble.message) is not None

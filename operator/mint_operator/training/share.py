"""What a wave takes of a base's slots by serving, as far as that matters to waves that want to train. Pure."""

from collections.abc import Iterable

import msgspec

from mint_operator.planning import conditions
from mint_operator.planning.snapshot import ObservedWave
from mint_operator.training.standing import WaveStanding

_OVER = {"Complete", "Cancelled", "Failed"}  # phases of a wave that trains no more


class Share(msgspec.Struct, frozen=True):
    """What a wave serves, or is to serve. `standing`: of a wave that trains, which serves what it has published."""

    wave: ObservedWave
    standing: WaveStanding | None

    @property
    def adapters(self) -> list[str]:
        """The adapters, as far as they are known: of a wave that trains, those of policies that have ended."""
        if self.standing is not None:
            ended = [each for each in self.standing.policies if self.standing.ended(each)]
            return [each.name for each in ended if each.published is not None]
        given, listed = self.wave.spec.adapters, self.wave.listed
        if listed is not None or self.wave.defect:
            return [each.name for each in listed or ()]
        return [*given.names, *[each.name for each in given.sources]]

    @property
    def waits(self) -> bool:
        """Whether the wave waits for slots; one that is kept as it is already has all it gets."""
        return not self.wave.defect and self._refused in {None, conditions.WAITING_FOR_CAPACITY}

    @property
    def holds(self) -> bool:
        """Whether the wave has its slots."""
        return bool(self.wave.defect) or self._refused == ""

    @property
    def counts(self) -> bool:
        """Whether the wave has its slots, or gets them once there are enough."""
        elsewhere = {conditions.WAITING_FOR_QUOTA, conditions.WAITING_FOR_ENGINES}  # more engines would not help
        return self.holds or (self._refused not in elsewhere and self.wave.status.phase != "Failed")

    def yields(self, priority: int) -> bool:
        """Whether the wave gives way to another of this priority."""
        return not self.wave.defect and self.wave.spec.priority < priority

    @property
    def _refused(self) -> str | None:
        """The reason why nothing is served; "" if it is, None if the wave has no status yet."""
        status = self.wave.status
        if self.standing is not None:  # its condition Admitted is about training
            return "" if status.counts.wanted else self._unserved
        admitted = conditions.find(status.conditions, conditions.ADMITTED)
        return None if admitted is None else "" if admitted.status == "True" else admitted.reason

    @property
    def _unserved(self) -> str:
        """Why a wave that trains serves nothing, as far as its status tells; "" if no policy of it is complete."""
        status = self.wave.status
        ready, training = conditions.find(status.conditions, "Ready"), status.training
        if status.phase in _OVER:
            return ready.reason if ready is not None and ready.status == "False" else ""
        return conditions.NOT_ADMITTED if training is not None and training.policies.complete else ""


def slots_of(shares: Iterable[Share]) -> int:
    """Return the slots of these shares together: an adapter that several waves serve takes those of one."""
    copies, unknown = dict[str, int](), 0
    for share in shares:
        replicas, adapters = share.wave.spec.serve.replicas, share.adapters
        for name in adapters:
            copies[name] = max(copies.get(name, 0), replicas)
        if not adapters and share.standing is None:
            unknown += share.wave.status.counts.wanted
    return unknown + sum(copies.values())

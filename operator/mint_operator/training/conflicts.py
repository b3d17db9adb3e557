"""Resolves conflicts over names: no policy is trained whose name another wave trains, or serves from elsewhere."""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from mint_contracts.records import Mentions
from mint_contracts.source import parent
from mint_contracts.training_records import published_in
from mint_operator.planning import conditions
from mint_operator.planning.adapters import resolve, shown_name, shown_waves
from mint_operator.planning.refusal import Refusal
from mint_operator.planning.snapshot import ObservedBase, ObservedWave
from mint_operator.training.standing import WaveStanding


def without_conflicts(
    base: ObservedBase, standings: Mapping[str, WaveStanding], order: Iterable[str], serving: Sequence[ObservedWave]
) -> dict[str, WaveStanding]:
    """Return the standings; of two waves that name a policy, the later must wait until the other is deleted.

    A wave that has begun comes before one that has not, and a served adapter before a policy that has not begun.
    A wave that is kept as it is comes before all. One that was cancelled before it began takes part in no conflict.
    """
    names = {each.name for standing in standings.values() if not standing.begun for each in standing.policies}
    serving = [wave for wave in serving if not names.isdisjoint(wave.named)]
    owners: dict[str, str] = {}
    found: dict[str, WaveStanding] = {}
    for key in sorted(order, key=lambda key: (not standings[key].kept, not standings[key].begun)):
        standing = found[key] = standings[key]
        if standing.over and not standing.begun:
            continue
        why = _trained(key, standing, owners) or (None if standing.begun else _served(key, base, standing, serving))
        if why is not None and not standing.kept:
            unfit = standing.unfit or why
            standing = msgspec.structs.replace(standing, unfit=unfit, policies=(), wants_slot=())
        owners.update((each.name, key) for each in standing.policies)
        found[key] = standing
    return found


def _trained(key: str, standing: WaveStanding, owners: Mapping[str, str]) -> Refusal | None:
    """Return the conflict with another wave that trains one of the policies; None if there is none."""
    taken = next((each.name for each in standing.policies if each.name in owners), None)
    if taken is None:
        return None
    owner = owners[taken]
    message = f"policy {taken} is trained by {shown_name(key, owner)}; choose another name, or delete that wave"
    return _conflict(message, Mentions((taken,), shown_waves(key, owner)))


def _served(key: str, base: ObservedBase, standing: WaveStanding, serving: Sequence[ObservedWave]) -> Refusal | None:
    """Return the conflict with a wave that serves something else under a policy's name; None if there is none.

    What the policy itself has published, e.g. in an earlier run, does not conflict.
    """
    names = {each.name for each in standing.policies}
    for wave in serving:
        taken = names & wave.named
        wants = resolve(wave, base) if taken else ()
        for want in () if isinstance(wants, Refusal) else wants:
            if want.adapter in taken and parent(want.source) != published_in(standing.store, want.adapter).uri:
                name, known = shown_name(key, wave.meta.key), shown_waves(key, wave.meta.key)
                where = f" from {want.source.uri}" if known else ""
                message = f"policy {want.adapter} has the name of an adapter that {name} serves{where}"
                mentions = Mentions((want.adapter,), known, others=bool(known))
                return _conflict(f"{message}; choose another name, or delete that wave", mentions)
    return None


def _conflict(message: str, mentions: Mentions) -> Refusal:
    return Refusal(conditions.POLICY_CONFLICT, message, terminal=False, mentions=mentions)

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
from mint_operator.training.stand import WaveStand


def without_conflicts(
    base: ObservedBase, stood: Mapping[str, WaveStand], order: Iterable[str], serving: Sequence[ObservedWave]
) -> dict[str, WaveStand]:
    """Return the stands; of two waves that name a policy, the later must wait until the other is deleted.

    A wave that has begun comes before one that has not, and a served adapter before a policy that has not begun.
    A wave that is kept as it is comes before all.
    """
    owners: dict[str, str] = {}
    found: dict[str, WaveStand] = {}
    for key in sorted(order, key=lambda key: (not stood[key].kept, not stood[key].begun)):
        stand = stood[key]
        why = _trained(key, stand, owners) or (None if stand.begun else _served(key, base, stand, serving))
        if why is not None and not stand.kept:
            unfit = stand.unfit or why
            stand = msgspec.structs.replace(stand, unfit=unfit, policies=(), wants_slot=())
        owners.update((each.name, key) for each in stand.policies)
        found[key] = stand
    return found


def _trained(key: str, stand: WaveStand, owners: Mapping[str, str]) -> Refusal | None:
    """Return the conflict with another wave that trains one of the policies; None if there is none."""
    taken = next((each.name for each in stand.policies if each.name in owners), None)
    if taken is None:
        return None
    owner = owners[taken]
    message = f"policy {taken} is trained by {shown_name(key, owner)}; choose another name, or delete that wave"
    return _conflict(message, Mentions((taken,), shown_waves(key, owner)))


def _served(key: str, base: ObservedBase, stand: WaveStand, serving: Sequence[ObservedWave]) -> Refusal | None:
    """Return the conflict with a wave that serves something else under a policy's name; None if there is none.

    What the policy itself has published, e.g. in an earlier run, does not conflict.
    """
    names = {each.name for each in stand.policies}
    for wave in serving:
        taken = names & wave.named
        wants = resolve(wave, base) if taken else ()
        for want in () if isinstance(wants, Refusal) else wants:
            if want.adapter in taken and parent(want.source) != published_in(stand.store, want.adapter).uri:
                name, known = shown_name(key, wave.meta.key), shown_waves(key, wave.meta.key)
                where = f" from {want.source.uri}" if known else ""
                message = f"policy {want.adapter} has the name of an adapter that {name} serves{where}"
                mentions = Mentions((want.adapter,), known, others=bool(known))
                return _conflict(f"{message}; choose another name, or delete that wave", mentions)
    return None


def _conflict(message: str, mentions: Mentions) -> Refusal:
    return Refusal(conditions.POLICY_CONFLICT, message, terminal=False, mentions=mentions)

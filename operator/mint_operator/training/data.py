"""Datasets of a training wave: inlines the examples from ConfigMaps, so that engines need not read any."""

from collections.abc import Iterable, Mapping

import msgspec

from mint_contracts.byte_counts import in_units
from mint_contracts.errors import InvalidRequest, SourceForbidden, SourceNotFound, SourceUnavailable
from mint_contracts.hub import place_of
from mint_contracts.records import Failure
from mint_contracts.source import Source, locate, parent
from mint_contracts.training import Dataset, Policies, Policy, Train

MOST_BYTES = 1 << 20  # of one wave's examples in the placement map; as much as a ConfigMap holds

# ConfigMap of the wave's namespace -> key -> text, or why it cannot be read; without those that do not exist
Texts = Mapping[str, Mapping[str, str] | Failure]


def config_maps(train: Train) -> frozenset[str]:
    """Return the names of the ConfigMaps that a wave reads."""
    return frozenset(each.config_map.name for each in _datasets(train, train.policies.list) if each.config_map)


def inlined(train: Train, policies: tuple[Policy, ...], texts: Texts) -> tuple[Train, tuple[Policy, ...]]:
    """Return the wave's training and policies with the lines of their ConfigMaps.

    Raises SourceNotFound for a ConfigMap or key that does not exist, SourceUnavailable for one that cannot be read
    now, InvalidRequest for too many bytes or no examples.
    """
    train = msgspec.structs.replace(
        train,
        dataset=_inline(train.dataset, texts),
        evaluation=train.evaluation
        and msgspec.structs.replace(train.evaluation, dataset=_inline(train.evaluation.dataset, texts)),
    )
    policies = tuple(
        msgspec.structs.replace(policy, dataset=_inline(policy.dataset, texts)) if policy.dataset else policy
        for policy in policies
    )
    size = sum(len(line.encode()) for each in _datasets(train, policies) for line in each.lines)
    if size > MOST_BYTES:
        raise InvalidRequest(
            "spec.train",
            f"has {in_units(size)} of examples in total; above {in_units(MOST_BYTES)}, put them into a file and set "
            "its uri",
        )
    return train, policies


def mapped(train: Train, policies: Iterable[Policy]) -> Policies:
    """Return the policies whose own examples are lines of ConfigMaps now, with no more than these."""
    given = {each.name for each in train.policies.list if each.dataset and each.dataset.config_map}
    own = ((each.name, each.dataset) for each in policies if each.name in given)
    return Policies(
        list=tuple(Policy(name=name, dataset=dataset) for name, dataset in own if dataset and dataset.lines)
    )


def check_claims(train: Train, policies: Iterable[Policy], mounted: frozenset[str]) -> None:
    """Check that engines can read every dataset that is in a claim or on the hub. Raises SourceForbidden."""
    for each in _datasets(train, policies):
        source = Source(uri=each.uri, revision=each.revision)
        place = locate(source) if each.uri else None
        if place is not None and place.scheme == "hf":
            place_of(locate(Source(parent(source), each.revision)), f"dataset {each.uri}")
        if place is not None and place.scheme == "pvc" and place.host not in mounted:
            raise SourceForbidden(
                f"dataset {each.uri}",
                f"is in claim {place.host}, which engines do not mount; add it to spec.adapters.volumeClaims of "
                f"the BaseModel (mounted now: {', '.join(sorted(mounted)) or 'none'})",
            )


def _datasets(train: Train, policies: Iterable[Policy]) -> list[Dataset]:
    found = [train.dataset, train.evaluation.dataset if train.evaluation else None]
    found += [policy.dataset for policy in policies]
    return [each for each in found if each is not None]


def _inline(dataset: Dataset | None, texts: Texts) -> Dataset | None:
    if dataset is None or dataset.config_map is None:
        return dataset
    name, key = dataset.config_map.name, dataset.config_map.key
    if name not in texts:
        raise SourceNotFound(
            f"ConfigMap {name}", "does not exist in the wave's namespace; create it, with the examples"
        )
    found = texts[name]
    if isinstance(found, Failure):
        raise SourceUnavailable(f"ConfigMap {name}", found.message)
    if key not in found:
        has = ", ".join(sorted(found)[:5]) or "none"
        raise SourceNotFound(f"ConfigMap {name}", f"has no key {key} (its keys: {has}); add it, or choose another")
    # Split bytes, as for a file: str.splitlines also splits at characters that JSON strings may hold, such as U+2028.
    # Blank lines stay, so that an example is identified by its line number in the ConfigMap.
    lines = [line.decode() for line in found[key].encode().splitlines()]
    if not any(line.strip() for line in lines):
        raise InvalidRequest(f"ConfigMap {name}", f"has no examples under {key}; write one JSON object per line")
    return msgspec.structs.replace(dataset, config_map=None, lines=lines)

"""Revisions to publish, and a store that can be held while it is used."""

from pathlib import Path

from mint_contracts.training_records import Published
from mint_engine.adapters.packed import Packed
from mint_engine.policies.stored import revisions
from mint_engine.policies.stored.series import Name
from mint_engine.policies.stored.store import Content, LocalStore, Store
from tests.engine.made import peft_adapter, read_tiny
from tests.engine.training.training_engine import Gate


def publish(store: Store, policy: str, name: Name, packed: Packed) -> tuple[Published, Packed]:
    """Publish and sweep as a trainer does."""
    told = revisions.publish(store, policy, name, packed)
    revisions.sweep(store, policy, name)
    return told


class Held(LocalStore):
    """A store with gates that can hold a thread before it lists, reads or writes."""

    def __init__(self, store: Store, **gates: Gate) -> None:
        assert isinstance(store, LocalStore)
        super().__init__(store.source, store._root, store._mounted)
        self._gates = gates

    def _go_by(self, what: str) -> None:
        if gate := self._gates.get(what):
            gate.go_by()

    def write(self, path: str, content: Content) -> None:
        self._go_by("write")
        super().write(path, content)

    def read(self, path: str, limit: int | None) -> bytes:
        self._go_by("read")
        return super().read(path, limit)

    def names(self, path: str) -> list[str]:
        self._go_by("names")
        return super().names(path)


def made(folder: Path, seed: int = 0) -> Packed:
    """Make a packed revision."""
    peft_adapter(folder / f"made-{seed}", seed=seed)
    return read_tiny(folder / f"made-{seed}")

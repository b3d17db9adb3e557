"""A record of the calls made to real stores."""

from mint_contracts.source import Source
from mint_engine.policies.stored.store import Content, Store, store_of


class Asked(list[tuple[str, str]]):
    """The (operation, path) pairs of all calls to stores opened through `store_of`, in order."""

    def store_of(self, source: Source) -> Store:
        """Open a store as the engine's `store_of` does, and record the calls to it."""
        return _Told(store_of(source), self)


class _Told:
    def __init__(self, store: Store, asked: Asked) -> None:
        self._store, self._asked, self.source = store, asked, store.source

    def write(self, path: str, content: Content) -> None:
        self._asked.append(("write", path))
        self._store.write(path, content)

    def read(self, path: str, limit: int | None) -> bytes:
        self._asked.append(("read", path))
        return self._store.read(path, limit)

    def names(self, path: str) -> list[str]:
        self._asked.append(("names", path))
        return self._store.names(path)

    def delete(self, path: str) -> None:
        self._asked.append(("delete", path))
        self._store.delete(path)

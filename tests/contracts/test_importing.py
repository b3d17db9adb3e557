"""Garbage collection is off while programs import modules, and on again afterwards."""

import gc

import pytest

from mint_contracts.importing import without_collecting


def test_garbage_collection_is_off_while_importing_and_skips_imported_objects_afterwards() -> None:
    with without_collecting():
        assert not gc.isenabled()
        kept = [object()]
    assert gc.isenabled()
    assert not any(each is kept for each in gc.get_objects())


def test_a_failed_import_leaves_collecting_as_it_was() -> None:
    with pytest.raises(ImportError), without_collecting():
        raise ImportError
    assert gc.isenabled()

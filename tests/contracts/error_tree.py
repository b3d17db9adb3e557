"""Every error class of mint_contracts.errors."""

from mint_contracts import errors


def tree(root: type[errors.MintError], depth: int = 0) -> list[tuple[int, type[errors.MintError]]]:
    """Return `root` and every class below it with its depth, in the order of the source."""
    found = [(depth, root)]
    for child in root.__subclasses__():
        found += tree(child, depth + 1)
    return [(level, kind) for level, kind in found if kind.__module__ == "mint_contracts.errors"]


EVERY = [kind for _, kind in tree(errors.MintError)]

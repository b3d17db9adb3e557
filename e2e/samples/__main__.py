"""Make every sample, or say that they were reused, and print where they are."""

import sys
from functools import partial

from e2e.samples import SampleError, prepare


def main() -> int:
    """Run `prepare`; return the exit status."""
    try:
        prepare(partial(print, flush=True))
    except SampleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

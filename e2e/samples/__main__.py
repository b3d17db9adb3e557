"""Make every sample, or say that they were reused, and print where they are."""

import os
import sys
import warnings

from e2e.samples import SampleError, prepare


def main() -> int:
    """Run `prepare`; return the exit status."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # a bar for each load would drown our own lines
    warnings.filterwarnings(
        "ignore", message="`is_gradient_checkpointing`", category=FutureWarning
    )  # PEFT's, not ours
    try:
        prepare(lambda line: print(line, flush=True))
    except SampleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A program that is terminated while it is still importing."""

import asyncio
import os
import sys
from pathlib import Path

from tests.waiting import PATIENCE_S, until

_STARTED = "importing"


async def ends_while_it_imports(program: str, slow: str, folder: Path) -> int:
    """Run a module, terminate it while it imports `slow` from a disk that never answers, and return its exit code.

    SIGTERM is the only signal that a container's first process gets before it is killed.
    """
    (folder / f"{slow}.py").write_text(f"import pathlib, time; pathlib.Path({_STARTED!r}).touch(); time.sleep(3600)")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", program), cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}
    )
    try:
        await until((folder / _STARTED).exists)
        process.terminate()
        return await asyncio.wait_for(process.wait(), PATIENCE_S)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

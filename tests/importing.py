"""A program that is told to end while it still imports."""

import asyncio
import os
import sys
from pathlib import Path

from tests.waiting import PATIENCE_S, until

_STARTED = "importing"


async def ends_while_it_imports(program: str, slow: str, folder: Path) -> int:
    """The exit code of a module run as a program, told to end while it imports `slow` from a disk that never answers.

    As its container's first process it is told in no other way.
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

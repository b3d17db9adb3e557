"""The command `mint`, run as a process of its own."""

import asyncio
import sys


async def mint(target: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run `mint`; return the exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", "from mint_gateway.cli import main; main()"),
        *arguments,
        env={"MINT_GATEWAY": target, "COLUMNS": "160"} | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:  # a patient one would be left behind
            process.kill()
            await process.wait()
    return process.returncode or 0, out.decode(), err.decode()


def own_lines(err: str) -> list[str]:
    """Return the command's own lines among those of gRPC, which logs each attempt to connect, also after the last."""
    return [line for line in err.splitlines() if line.startswith("mint: ")]

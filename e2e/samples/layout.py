"""Where each sample lies below the samples' root."""

from dataclasses import dataclass
from pathlib import Path

from e2e.samples.catalog import GGUF_FILE


@dataclass(frozen=True)
class Samples:
    """The paths of the samples. All is below `root` and readable by every user, so that pods can mount it."""

    root: Path

    @property
    def base(self) -> Path:
        """Safetensors directory, float32, with tokenizer and chat template."""
        return self.root / "base"

    @property
    def base_gguf(self) -> Path:
        """Directory that holds the same model's GGUF and nothing else."""
        return self.root / "base-gguf"

    @property
    def base_gguf_file(self) -> Path:
        """The GGUF itself."""
        return self.base_gguf / GGUF_FILE

    @property
    def adapters(self) -> Path:
        """`<adapters>/<name>/adapter_config.json` and `adapter_model.safetensors`, for the names in `GOOD`."""
        return self.root / "adapters"

    @property
    def broken(self) -> Path:
        """`<broken>/<name>/...`, for the names in `BROKEN`."""
        return self.root / "broken"

    @property
    def digest(self) -> str:
        """Names the content: other sources or versions give another digest."""
        return self.root.name

    @property
    def folders(self) -> dict[str, Path]:
        """What to copy where, for whoever stages the samples: folder name below the target, and its source."""
        return {path.name: path for path in (self.base, self.base_gguf, self.adapters, self.broken)}

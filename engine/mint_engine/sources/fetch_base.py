"""Fetching a base model's files to this machine: local files are used in place, others are copied once."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from mint_contracts.byte_counts import in_units
from mint_contracts.claims import local_path
from mint_contracts.errors import (
    CapacityExceeded,
    CorruptFile,
    MintError,
    SourceForbidden,
    SourceNotFound,
    SourceUnavailable,
    UnsafeFormat,
    UnsupportedBase,
)
from mint_contracts.quantisation import MODELOPT_FILE
from mint_contracts.records import COPYING
from mint_contracts.source import Source, locate
from mint_contracts.storage_errors import writing_errors
from mint_engine.sources.base_copy import PARTIAL, BaseCopy
from mint_engine.sources.copying import folder_name, read_bounded
from mint_engine.sources.gguf_head import read_head
from mint_engine.sources.load_progress import LoadProgress
from mint_engine.sources.local import LocalFolder
from mint_engine.sources.retry import retrying
from mint_engine.sources.storage import Folder, RemoteFolder, remote_folder, subject_of

_SAFE = ".safetensors"
_GGUF = ".gguf"
_WEIGHTS = (_SAFE, _GGUF)
_SHOWN = 5  # file names shown in an error
SUFFIXES = (*_WEIGHTS, ".json", ".jinja", ".model", ".txt")  # of a base's files
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_CONFIG = "config.json"
# The files to ask a web server for, which has no listing; the index names the shards.
PROBED = (_CONFIG, "generation_config.json", "model.safetensors", "model.safetensors.index.json",
          "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "tekken.json", "special_tokens_map.json",
          "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
          "pytorch_model.bin", MODELOPT_FILE)  # fmt: skip
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_MAX_INDEX_BYTES = 64 << 20
_MAX_FILES = 10_000


# Look(folder, subject) raises a MintError that names `subject` if the base is to be refused. The folder has all of
# its files but the weights; of a GGUF file it has the head, followed by a hole.
Look = Callable[[Path, str], None]


def fetch_base(source: Source, cache: Path, look: Look, progress: LoadProgress | None = None) -> Path:
    """Return the local path of a base: a folder, or one .gguf file if the URI names one; copy it first if needed.

    `look` is called before the weights of a remote source are copied, to refuse a base that could not be loaded.
    `progress` counts the copied bytes.
    Raises UnsafeFormat for only pickled weights, UnsupportedBase for several GGUF files, CapacityExceeded if the
    disk of `cache` is too small, CorruptFile and Source* errors, also about `cache`, and what `look` raises.
    """
    single = _single(source)
    if locate(source).is_local:
        return _in_place(source, single)
    target = cached_base(source, cache)
    if not target.is_dir():
        with writing_errors(f"cache {str(cache)!r}"):
            _copy(source, single, target, look, progress or LoadProgress())
    return target / single


def _single(source: Source) -> str:
    """Return the file that a URI names; "" if it names a folder."""
    path = locate(source).path
    return path.rsplit("/", 1)[-1] if path.endswith(_GGUF) else ""


def cached_base(source: Source, cache: Path) -> Path:
    """Return the path of a remote base's complete copy."""
    return cache / "base" / folder_name(source)


def drop_base(source: Source, cache: Path) -> None:
    """Delete a bad copy and its marks. If this process is killed meanwhile, the next copy deletes the rest."""
    target = cached_base(source, cache)
    aside = target.with_name(f"{PARTIAL}dropped-{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(OSError):
        target.rename(aside)  # so that a half-deleted copy is never visible under its own name
    with suppress(OSError):
        marks_path(target).unlink()
    shutil.rmtree(aside, ignore_errors=True)


def marks_path(target: Path) -> Path:
    """Return the path of the file with a copy's marks, which identify the content of the source that it has."""
    return target.parent.with_name("marks") / target.name


def _note(path: Path, marks: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(marks))


def copied_marks(source: Source, cache: Path) -> dict[str, str]:
    """Return the marks of a base's copy by file; {} unless all of them are known."""
    try:
        marks = msgspec.json.decode(marks_path(cached_base(source, cache)).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return {}
    return marks if all(marks.values()) else {}


def source_marks(source: Source) -> dict[str, str]:
    """Return the marks of a remote source's present content by file. Raises as `fetch_base` does."""
    folder, found = _listed(source, _single(source))
    return {name: folder.about(name).mark for name in sorted(found) if name.endswith(SUFFIXES)}


def drop_stale(source: Source, cache: Path) -> bool:
    """Delete a copy whose content differs from its source's present one. Raises as `source_marks`.

    Returns whether the copy's marks are known.
    """
    marks = copied_marks(source, cache)
    if marks and source_marks(source) != marks:
        drop_base(source, cache)
    return bool(marks)


def weights_read(names: Collection[str], shards: Collection[str]) -> set[str]:
    """Return which of a folder's safetensors transformers may read: an index's shards, and model.safetensors.

    Further ones may have the same weights again, for their makers' own code (consolidated.safetensors).
    """
    known = {*shards, *({WHOLE} & set(names))}
    return known or {name for name in names if name.endswith(_SAFE)}


def without_ggufs(names: Collection[str]) -> list[str]:
    """Return a folder's files, without .gguf if there are safetensors: these have the same weights."""
    safe = any(name.endswith(_SAFE) for name in names)
    return [name for name in names if not (safe and name.endswith(_GGUF))]


def _in_place(source: Source, single: str) -> Path:
    """Return a local base's path. Links are checked only now, though files are opened later: its owner is trusted."""
    path, fence = local_path(locate(source))
    folder = LocalFolder(path.parent if single else path, subject_of(source), fence=fence)
    names = folder.files()
    if single and path.name not in names:
        raise SourceNotFound(folder.subject, "does not exist; check its path")
    for name in [path.name] if single else names:
        folder.resolve(name)
    return path


def check_names(names: list[str], subject: str) -> None:
    """Raise UnsafeFormat, SourceNotFound, CorruptFile or UnsupportedBase unless these files make a loadable base."""
    if any(name.endswith(_SAFE) for name in names):
        if _CONFIG not in names:
            raise CorruptFile(subject, f"holds no {_CONFIG}")
        return
    ggufs = [name for name in names if name.endswith(_GGUF)]
    if len(ggufs) > 1:
        raise UnsupportedBase(subject, several_ggufs(ggufs))
    if not ggufs and any(name.endswith(_PICKLES) for name in names):
        raise UnsafeFormat(subject, "has pickled weights only; save the base model as safetensors")
    if not ggufs:
        raise SourceNotFound(subject, "has no *.safetensors and no .gguf; check its path and revision")


def several_ggufs(names: list[str]) -> str:
    """Return the error message for a folder with several .gguf files: it is unclear which one is the base."""
    shown = ", ".join(sorted(names)[:_SHOWN])
    return f"holds {len(names)} .gguf files; name the one to serve in the URI ({shown})"


def _copy(source: Source, single: str, target: Path, look: Look, progress: LoadProgress) -> None:
    folder, found = _listed(source, single)
    check_names(sorted(found), subject_of(source))
    wanted = {name: size for name, size in sorted(found.items()) if name.endswith(SUFFIXES)}
    if len(wanted) > _MAX_FILES:
        raise CorruptFile(folder.subject, f"holds {len(wanted)} files; a base model has at most {_MAX_FILES}")
    copy = BaseCopy(folder, target, progress)
    try:
        copy.make_room(wanted)
        _check_room(wanted, copy, target)
        weights = {name: size for name, size in wanted.items() if name.endswith(_WEIGHTS)}
        copy.small({name: size for name, size in wanted.items() if name not in weights})
        if any(name.endswith(_SAFE) for name in weights):
            look(copy.files, folder.subject)
        else:
            _look_at_head(copy, target, *next(iter(weights.items())), look)
        sizes = [size or 0 for size in weights.values()]
        progress.begin(COPYING, sum(sizes) if all(sizes) else 0)
        copy.weights(weights)
        copy.check_same()
        _note(marks_path(target), copy.content_marks)
        copy.publish()
    except (SourceUnavailable, SourceForbidden):  # the next attempt continues where this one ends
        raise
    except MintError:
        copy.drop()
        raise


def _look_at_head(copy: BaseCopy, target: Path, name: str, size: int | None, look: Look) -> None:
    """Call `look` on a GGUF file's head beside the small files; without a known size, do nothing."""
    if size is None:
        return
    folder = copy.folder
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=target.parent) as within:
        path = Path(within, name)

        def read() -> None:
            with folder.open_at(name, 0, folder.about(name), in_blocks=False) as file:
                path.write_bytes(read_head(file, folder.subject))

        retrying(read)
        os.truncate(path, size)  # its real size, for checks of that; the rest is a hole, which takes no space
        for each in copy.files.iterdir():
            if each.name != name:
                shutil.copyfile(each, Path(within, each.name))
        look(Path(within), folder.subject)


def _check_room(wanted: Mapping[str, int | None], copy: BaseCopy, target: Path) -> None:
    need = sum(size or 0 for size in wanted.values()) - copy.kept_bytes
    free = shutil.disk_usage(target.parent).free
    if need > free:
        message = (
            f"needs {in_units(need)} on its node's disk, and {in_units(free)} are free; give it nodes with more disk"
        )
        raise CapacityExceeded(copy.folder.subject, message)


def _listed(source: Source, single: str) -> tuple[RemoteFolder, dict[str, int | None]]:
    if single:
        folder = remote_folder(Source(uri=source.uri.rsplit("/", 1)[0], revision=source.revision))
        return folder, {name: size for name, size in folder.files(single).items() if name == single}
    folder, shards = remote_folder(source), list[str]()
    found = folder.files(*PROBED)
    if INDEX in found:
        shards = _shards(folder)
        found |= folder.files(*shards)
        if absent := [name for name in shards if name not in found]:
            raise CorruptFile(folder.subject, f"lacks {', '.join(absent[:3])}, named by {INDEX}")
    read = weights_read(found, shards)
    kept = (name for name in without_ggufs(found) if name in read or not name.endswith(_SAFE))
    return folder, {name: found[name] for name in kept}


def _shards(folder: Folder) -> list[str]:
    """Return the weight files that an index names. Raises CorruptFile."""
    try:
        names = set(json.loads(read_bounded(folder, INDEX, _MAX_INDEX_BYTES))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CorruptFile(folder.subject, f"has a {INDEX} without a weight_map") from None
    if not all(isinstance(name, str) and "/" not in name and name.endswith(".safetensors") for name in names):
        raise CorruptFile(folder.subject, f"has a {INDEX} that names files other than plain *.safetensors")
    if len(names) > _MAX_FILES:
        raise CorruptFile(folder.subject, f"has a {INDEX} of {len(names)} files; a base has at most {_MAX_FILES}")
    return sorted(names)

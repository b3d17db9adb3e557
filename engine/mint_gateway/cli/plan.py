"""`mint plan`: whether a base and a mix of waves fit on a device, from the base's config.json alone."""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mint_contracts.errors import CorruptFile, InvalidRequest, SourceForbidden, SourceNotFound
from mint_contracts.quantisation import MODELOPT_FILE
from mint_gateway.cli.argument_types import positive
from mint_gateway.cli.plan_table import adapters_table, layouts_table, plan_table
from mint_gateway.cli.purpose import purpose
from mint_gateway.cli.showing import console, show_json
from mint_gateway.planning.config import read_shape
from mint_gateway.planning.devices import DEVICES, Device
from mint_gateway.planning.fit import Mix, Storage, make_plan
from mint_gateway.planning.shape import DTYPE_BYTES, KINDS, keep_experts

_QUANTITY = re.compile(r"([1-9][0-9]{0,20})(?:([KMGT])(i)?)?")
_MOST = 10**15  # largest count accepted: everything computed from it stays within a float's range
_MOST_RANKS = 65_536  # each is computed separately
_DEFAULT = " (default %(default)s)"  # ends an option's help

if TYPE_CHECKING:
    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def add(verbs: "Verbs") -> None:
    """Declare the verb. It contacts no gateway, so it has none of the common options."""
    verb = verbs.add_parser("plan", **purpose("work out what fits of a base and a wave mix on a device"))
    verb.add_argument("config", type=Path, metavar="BASE", help="a base's folder, or its config.json")
    _add_engine(verb)
    _add_mix(verb)
    disk, network = "bytes a second from the local disk", "bytes a second from storage"
    verb.add_argument("--disk", type=_positive, default=1_400_000_000, metavar="BYTES/S", help=disk + _DEFAULT)
    verb.add_argument("--network", type=_positive, default=1_250_000_000, metavar="BYTES/S", help=network + _DEFAULT)
    verb.add_argument("-o", "--output", choices=("text", "json"), default="text", help="how to print" + _DEFAULT)
    verb.set_defaults(run=run)


def _add_engine(verb: argparse.ArgumentParser) -> None:
    """Declare the options that describe an engine."""
    verb.add_argument("--device", choices=sorted(DEVICES), default="h100", help="what to plan for" + _DEFAULT)
    verb.add_argument(
        "--memory", type=_size, metavar="SIZE", help="memory of one device, for example 64Gi (default: the device's)"
    )
    verb.add_argument(
        "--node", type=_positive, metavar="N", help="devices in a node (default: as vendors build them)"
    )
    verb.add_argument("--tensor-parallel", type=_ranks, default=1, metavar="N", help="ranks of one engine" + _DEFAULT)
    dtype = "what the engine computes in" + _DEFAULT
    verb.add_argument("--dtype", choices=sorted(DTYPE_BYTES), default="bfloat16", help=dtype)
    verb.add_argument("--quantised-experts", action="store_true", help="keep routed experts quantised, as published")


def _add_mix(verb: argparse.ArgumentParser) -> None:
    """Declare the options that describe its load."""
    targets = "what adapters target; dense: all but routed experts" + _DEFAULT
    trained = "rank of each trained policy (default: that of --rank)"
    verb.add_argument(
        "--adapters", type=_positive, default=64, metavar="N", help="adapters in slots at once" + _DEFAULT
    )
    verb.add_argument("--rank", type=_positive, default=8, help="largest rank of an adapter" + _DEFAULT)
    verb.add_argument("--targets", choices=sorted(KINDS), default="all", help=targets)
    verb.add_argument("--requests", type=_positive, default=64, metavar="N", help="requests run at once" + _DEFAULT)
    verb.add_argument(
        "--context", type=_positive, default=4096, metavar="TOKENS", help="tokens of a request" + _DEFAULT
    )
    verb.add_argument(
        "--train", type=_positive, default=0, metavar="N", help="policies each engine trains" + _DEFAULT
    )
    verb.add_argument("--train-rank", type=_positive, metavar="RANK", help=trained)


async def run(options: argparse.Namespace) -> int:
    """Make the plan and print it. Return 0 if one or several engines hold the mix, 2 if none can."""
    file = _file(options.config)
    shape = read_shape(_read(options.config), f"file {file}")
    if options.quantised_experts:
        shape = keep_experts(shape, f"file {file}")
    device = _device(DEVICES[options.device], options)
    mix = Mix(
        *(options.adapters, options.rank, options.targets, options.requests, options.context),
        policies=options.train,
        policy_rank=options.train_rank or options.rank,
    )
    if 0 < shape.context_length < mix.context:
        raise InvalidRequest(
            "--context", f"is {mix.context}, but the base takes {shape.context_length} at most; lower it"
        )
    storage = Storage(options.disk, options.network)
    plan = make_plan(shape, device, options.tensor_parallel, mix, options.dtype, storage)
    if options.output == "json":
        more = {"fits": plan.fits, "share": plan.share, "repeated": plan.repeated}
        show_json(msgspec.to_builtins(plan) | more)
    else:
        shown = console()
        shown.print(plan_table(shape, device, options.tensor_parallel, mix, plan))
        shown.print(adapters_table(shape, device, options.tensor_parallel, mix, options.dtype, plan.weights))
        if plan.layouts:
            shown.print(layouts_table(plan, mix, options.dtype))
    return 0 if plan.fits else 2


def _device(device: Device, options: argparse.Namespace) -> Device:
    if options.memory:
        device = msgspec.structs.replace(device, memory=options.memory)
    if options.node and not device.one_memory:
        device = msgspec.structs.replace(device, node=options.node)
    return device


def _read(path: Path) -> dict[str, Any]:
    """Read a base's config.json, with ModelOpt's file beside it if config.json does not mention quantisation."""
    file = _file(path)
    config, beside = _read_object(path, file), file.with_name(MODELOPT_FILE)
    if "quantization_config" not in config and _looked_up(path, beside.exists):
        config["quantization_config"] = _read_object(path, beside)
    return config


def _file(path: Path) -> Path:
    return path / "config.json" if _looked_up(path, path.is_dir) else path


def _looked_up(path: Path, look: Callable[[], bool]) -> bool:
    try:
        return look()
    except PermissionError:
        raise SourceForbidden(f"base {path}", "cannot be read; check the permissions of its folders") from None
    except OSError as error:
        raise SourceNotFound(f"base {path}", f"could not be looked up ({error.strerror})") from None


def _read_object(path: Path, file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        raise SourceNotFound(f"base {path}", "has no config.json; give a base's folder, or its config.json") from None
    except (OSError, ValueError, RecursionError):
        raise CorruptFile(f"file {file}", "cannot be read as JSON") from None
    if not isinstance(found, dict):
        raise CorruptFile(f"file {file}", "is not a JSON object")
    return found


def _size(text: str) -> int:
    """Parse a quantity of bytes as in Kubernetes: 64Gi, 80G or 80000000000."""
    found = _QUANTITY.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid size; use for example 64Gi")
    count = int(found[1])
    for _ in range(" KMGT".index(found[2] or " ")):
        count *= 1024 if found[3] else 1000
    return _bounded(text, count, _MOST)


def _positive(text: str) -> int:
    return _bounded(text, positive(text), _MOST)


def _ranks(text: str) -> int:
    return _bounded(text, positive(text), _MOST_RANKS)


def _bounded(text: str, count: int, most: int) -> int:
    if count > most:
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is too large; the maximum is {most}")
    return count

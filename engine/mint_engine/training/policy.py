"""A policy's numbers: flat vectors in exactly its adapter's packed layout, so that each update is one operation.

Master weights, the gradient and Adam's two moments are float32 [n]. A revision is the weights rounded to the base's
dtype, a checkpoint is these vectors, and no two policies share memory.
"""

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mint_contracts.errors import InvalidRequest, RankTooLarge, UnknownTargetModules
from mint_contracts.targets import beyond, is_targeted, is_within
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.packed import Layout, Packed, fingerprint, halves, lay_out
from mint_engine.model.device import zeros
from mint_engine.residency.policy_memory import Needs
from mint_engine.residency.remapping import HUGE, reserve

_VECTORS = 4  # weights, gradient and Adam's two moments
_COPIES = 2  # of each vector, for saving by way of a copy and a file's bytes, or for reading another state
SPAN = 1 << 22  # numbers of vectors that are processed between two pauses: some milliseconds on a CPU


@dataclass(frozen=True)
class PolicySettings:
    """A new policy's settings. `target_modules` are named as in PEFT; empty: all that the base offers."""

    rank: int = 8
    alpha: float = 16.0
    target_modules: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class FormLimits:
    """What a base allows for its policies."""

    max_rank: int
    offered: tuple[str, ...] = ()  # the names of modules that adapters may target; empty: all there are
    base_name: str = ""  # for PEFT's config


@dataclass(frozen=True, eq=False)
class Form:
    """The form of a policy's adapter: shared by all policies of the same settings, and immutable."""

    config: bytes  # PEFT's adapter_config.json in canonical form
    base: str  # `fingerprint` of the base's modules
    layout: Layout
    scalings: tuple[float, ...]


@dataclass(eq=False)
class Policy:
    """One adapter in training. Owned by the step thread, once it has been put into its `Trainer`."""

    name: str
    form: Form
    weights: torch.Tensor  # [n] float32
    exp_avg: torch.Tensor  # [n] float32
    exp_avg_sq: torch.Tensor  # [n] float32
    step: int = 0  # optimizer steps taken
    rounded: torch.Tensor | None = None  # [n]: `weights` in the base's dtype; None: not computed yet, see `round`
    gradient: torch.Tensor | None = None  # [n] float32, not normalised; None: none since the last step
    normaliser: float = 0.0  # number that the gradient is still to be divided by
    sums: str = ""  # the type of loss that the gradient is a sum of
    broken: bool = False  # something in the gradient or its loss was not finite
    halfway: bool = False  # in the middle of an update: some of its optimizer steps are taken, but not all
    busy: bool = field(default=False, repr=False)  # a work is computing its gradient, or a step is being taken
    torn: bool = False  # part of an optimizer step is taken: the numbers are neither those before nor those after

    def round(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weights in the base's dtype [n], cached until the next step."""
        if self.rounded is None:
            self.rounded = room_to_round(self, dtype).copy_(self.weights)
        return self.rounded

    def forget_gradient(self) -> None:
        """Drop the gradient and all that belongs to it, as after a step."""
        self.gradient, self.normaliser, self.sums, self.broken = None, 0.0, "", False


def needs_of(elements: int, shared: int, dtype: torch.dtype, device: torch.device) -> Needs:
    """Return the most memory of a policy with `elements` weights: the host's, or the device's for its own numbers.

    With several ranks, each holds a part during an update, rounded and with its gradient: `shared` weights in all
    that are in the same memory. Saving and loading take a copy and a file's bytes in host memory; publishing takes a
    rounded copy and its bytes.
    """
    vectors, rounded = _VECTORS * elements * torch.float32.itemsize, elements * dtype.itemsize
    own = vectors + rounded + shared * (dtype.itemsize + torch.float32.itemsize)
    if device.type == "cpu":
        return Needs(own, _COPIES * vectors, 2 * rounded)
    return Needs(0, _COPIES * vectors, 2 * rounded, device=own)


def trainable(modules: Mapping[str, Module]) -> dict[str, Module]:
    """Return the modules that policies may train: not an indexer's, since its choice has no gradient."""
    return {path: module for path, module in modules.items() if ".indexer." not in path}


def form_of(settings: PolicySettings, modules: Mapping[str, Module], limits: FormLimits, name: str) -> Form:
    """Return a new policy's form. Raises RankTooLarge, UnknownTargetModules or InvalidRequest, naming the policy."""
    subject = f"policy {name}"
    if not 1 <= settings.rank <= limits.max_rank:
        raise RankTooLarge(subject, f"has rank {settings.rank}; the base model takes 1 to {limits.max_rank}")
    if not 0 < abs(settings.alpha) < float("inf"):
        raise InvalidRequest(subject, f"has alpha {settings.alpha}; give a finite number that is not 0")
    able = trainable(modules)
    wanted = _targets(settings, list(able.values()), limits, subject)
    ranks = {path: settings.rank for path, module in able.items() if is_targeted(module.name, wanted)}
    layout = lay_out(modules, ranks)
    return Form(
        config=_peft_config(settings, wanted, limits.base_name),
        base=fingerprint(modules),
        layout=layout,
        scalings=(settings.alpha / settings.rank,) * len(layout.places),
    )


def spans(vector: torch.Tensor, most: int = 0) -> Iterator[slice]:
    """Yield slices that cover a vector [n], each `most` long, by default `SPAN`."""
    most = most or SPAN
    return (slice(start, start + most) for start in range(0, vector.numel(), most))


def vector(elements: int, device: torch.device) -> torch.Tensor:
    """Return zeros for a policy's numbers, in large pages: with small ones, AdamW took 2.7 times as long."""
    return zeros((elements,), torch.float32, device)


def rounding(policy: Policy, dtype: torch.dtype) -> Generator[None, None, torch.Tensor]:
    """`Policy.round` with yields between bounded parts; the weights must not change meanwhile."""
    if policy.rounded is None:
        rounded = room_to_round(policy, dtype)
        for span in spans(rounded):
            rounded[span] = policy.weights[span]
            yield
        policy.rounded = rounded
    return policy.rounded


def room_to_round(policy: Policy, dtype: torch.dtype) -> torch.Tensor:
    """Allocate `Policy.rounded` [n], in pages of its own, which may become a slot's (see `SlotRows`)."""
    elements, device = policy.weights.numel(), policy.weights.device
    nbytes = elements * dtype.itemsize
    if device.type != "cpu" or nbytes < HUGE:
        return torch.empty(elements, dtype=dtype, device=device)
    return torch.from_numpy(reserve(-(-nbytes // HUGE) * HUGE)).view(dtype)[:elements]


def fresh(name: str, form: Form, seed: int, device: torch.device) -> Policy:
    """Make a policy that changes nothing yet, initialised as by PEFT: A Kaiming-uniform like nn.Linear, B zero."""
    weights = vector(form.layout.elements, torch.device("cpu"))
    draw = torch.Generator().manual_seed(seed)
    for place, a, _ in halves(form.layout, weights):
        bound = max(1, place.in_features) ** -0.5  # kaiming_uniform_ with a = sqrt(5)
        a.uniform_(-bound, bound, generator=draw)
    return _without_moments(name, form, moved(weights, device))


def continued(name: str, start: Packed, device: torch.device) -> Policy:
    """Make a policy that starts from a revision, and keeps its ranks and scalings."""
    header = start.header
    form = Form(header.config, header.base, header.layout, header.scalings)
    return _without_moments(name, form, _copied(start.run, device))


def moved(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU vector [n] on the device."""
    return numbers if numbers.device == device else _copied(numbers, device)


def _copied(run: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy in parts, between which a device may compute for other threads."""
    copy = vector(run.numel(), device)
    for span in spans(copy):
        copy[span] = run[span]
    return copy


def _without_moments(name: str, form: Form, weights: torch.Tensor) -> Policy:
    elements, device = weights.numel(), weights.device
    return Policy(name, form, weights, vector(elements, device), vector(elements, device))


def _targets(settings: PolicySettings, learning: Sequence[Module], limits: FormLimits, subject: str) -> list[str]:
    """Return target names that mean the same to PEFT, which knows all modules: none wider than those offered."""
    names = [module.name for module in learning]
    leaves = {module.leaf for module in learning}
    offered = sorted(each for each in limits.offered or leaves if any(is_within(name, each) for name in names))
    wanted = sorted(set(settings.target_modules)) or offered
    wider = beyond(wanted, offered)
    unknown = [
        each
        for each in wanted  # PEFT does not know our star for an expert's number
        if each in wider or "*" in each or not any(is_within(name, each) for name in names)
    ]
    if unknown:
        raise UnknownTargetModules(
            subject, f"targets {', '.join(unknown)}; the base model offers {', '.join(offered)}"
        )
    return wanted


def _peft_config(settings: PolicySettings, targets: list[str], base_name: str) -> bytes:
    config = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()

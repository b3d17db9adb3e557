"""Makes policies: new ones, from a revision or from a saved state. On any thread, so that decoding does not wait.

A policy is complete when it is returned; the step thread only has to put it into the trainer.
"""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from weakref import WeakKeyDictionary, WeakValueDictionary

import msgspec
import torch

from mint_contracts.errors import RankTooLarge
from mint_contracts.records import DeviceRoom, PolicyRoom
from mint_contracts.targets import within_layer
from mint_engine.adapters.adapter import Module
from mint_engine.adapters.cut import cut_layout
from mint_engine.adapters.packed import Layout, Packed, lay_out
from mint_engine.parallel.shares import ModuleCut
from mint_engine.residency.policy_memory import Needs
from mint_engine.training import policy as policies
from mint_engine.training import state
from mint_engine.training.policy import Form, FormLimits, Policy, PolicySettings, needs_of, trainable


class Maker:
    """Makes one engine's policies (see `Trainer.maker`). Callable from any thread."""

    def __init__(
        self,
        modules: Mapping[str, Module],
        limits: FormLimits,
        dtype: torch.dtype,
        device: torch.device,
        cuts: Sequence[Mapping[str, ModuleCut]] = (),
    ) -> None:
        """`cuts`: which parts of the modules each rank of this node holds; empty if one rank has all of them."""
        self._modules, self._limits, self._dtype, self._device = dict(modules), limits, dtype, device
        # Of the ranks that share this one's memory: on GPUs, each has its own.
        self._cuts = tuple(cuts) if device.type == "cpu" else tuple(cuts)[:1]
        self._needs = WeakKeyDictionary[Form, Needs]()  # cached: counting takes a while for a form with many modules
        self._lock = threading.Lock()
        self._forms: WeakValueDictionary[tuple[object, ...], Form] = WeakValueDictionary()

    def needs(self, name: str, settings: PolicySettings) -> Needs:
        """Return the most memory that a new policy takes. Raises as `fresh`."""
        return self._needs_in(self._form(name, settings).layout)

    def needs_from(self, start: Packed) -> Needs:
        """Return the most memory that a policy takes that begins with a revision's weights."""
        return self._needs_in(start.header.layout)

    def needs_for(self, policy: Policy) -> Needs:
        """Return the most memory that a made policy takes."""
        with self._lock:
            found = self._needs.get(policy.form)
            if found is None:
                found = self._needs[policy.form] = self._needs_in(policy.form.layout)
            return found

    @cached_property
    def room(self) -> PolicyRoom:
        """The memory that policies of any form take, for admission; budgets are left 0."""
        layout = lay_out(self._modules, dict.fromkeys(trainable(self._modules), 1))
        weights, shared = Counter[str](), Counter[str]()
        for place in layout.places:
            weights[within_layer(self._modules[place.path].name)] += place.elements
        each, part = (needs_of(*counts, self._dtype, self._device) for counts in ((1, 0), (0, 1)))
        for cuts in self._cuts:
            for place in cut_layout(layout, cuts).places:
                shared[within_layer(self._modules[place.path].name)] += place.elements * (part.own or part.device)
        found = PolicyRoom(budget=0, weights=dict(weights), own=each.own, copies=each.copies)
        if self._device.type == "cpu":
            return msgspec.structs.replace(found, shared=shared)
        device = DeviceRoom(budget=0, own=each.device, shared=shared)
        return msgspec.structs.replace(found, device=device)

    def fresh(self, name: str, settings: PolicySettings) -> Policy:
        """Make a new policy, initialised as by PEFT. Raises RankTooLarge, UnknownTargetModules or InvalidRequest."""
        return policies.fresh(name, self._form(name, settings), settings.seed, self._device)

    def continued(self, name: str, start: Packed) -> Policy:
        """Make a policy that begins with a revision's weights, and keeps its ranks and scalings."""
        return policies.continued(name, start, self._device)

    def read(self, name: str, data: bytes | bytearray) -> Policy:
        """Read a policy that `state.to_bytes` wrote, here or on another engine of this base.

        Raises CorruptFile, WrongBase or RankTooLarge.
        """
        subject = f"policy {name}"
        policy = state.from_bytes(data, name, self._modules, self._device, subject)
        rank, most = policy.form.layout.rank, self._limits.max_rank
        if rank > most:  # otherwise it could learn, and publish what no slot takes
            raise RankTooLarge(
                subject,
                f"was saved with rank {rank}; the base model takes up to {most}. Raise adapters.maxRank of the "
                f"BaseModel to {rank}, then resume it",
            )
        return policy

    def _needs_in(self, layout: Layout) -> Needs:
        shared = sum(cut_layout(layout, cuts).elements for cuts in self._cuts)
        return needs_of(layout.elements, shared, self._dtype, self._device)

    def _form(self, name: str, settings: PolicySettings) -> Form:
        """Return the form, shared by all policies of these settings: slots then know their layout already."""
        key = (settings.rank, settings.alpha, tuple(sorted(settings.target_modules)))
        with self._lock:
            form = self._forms.get(key)
            if form is None:
                form = policies.form_of(settings, self._modules, self._limits, name)
                self._forms[key] = form
            return form

"""The output of `mint plan`, as rich tables."""

import msgspec
from rich.table import Table

from mint_contracts.quantisation import BY_CHANNEL, BY_TENSOR, MXFP8, Float8, Integers, Mxfp4, Nvfp4
from mint_gateway.planning.devices import Device
from mint_gateway.planning.fit import Mix, Plan, hold
from mint_gateway.planning.limits import MOST_RANKS, MOST_SLOTS
from mint_gateway.planning.shape import DTYPE_BYTES, KINDS, BaseShape, can_keep_experts

_RANKS = (1, 8, 16, 32, 64)
_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def plan_table(shape: BaseShape, device: Device, ranks: int, mix: Mix, plan: Plan) -> Table:
    """Return a table with one row per figure: its total, the fullest device's part, and details."""
    where = "machine" if device.one_memory else "fullest device"
    title = f"{shape.model_type} on {ranks} {'ranks of a' if device.one_memory else 'x'} {device.name}"
    table = Table("what", "total", where, "details", title=title)
    most = {name: size(max(getattr(each, name) for each in plan.held)) for name in ("weights", "cache", "adapter")}
    repeated = f", {size(plan.repeated)} of them replicated" if plan.repeated > 0 else ""
    if plan.files:
        more = ", including multi-token prediction layers, which are not loaded" if shape.predicting else ""
        table.add_row("files", size(plan.files), "", _published(shape) + more)
    table.add_row(
        "weights", size(plan.weights), most["weights"], f"{plan.parameters / 1e9:,.2f} billion parameters{repeated}"
    )
    alone = "all weights, and most again as MinT's kernels lay them out" if plan.repeated else "all weights"
    if not device.one_memory:
        alone = "the tensors that are being read, at most; each goes to the GPU at once"
    shares = "each rank's share" if device.one_memory else "the tensors that ranks are reading, at most"
    loading = f"{shares}, and one layer that the first rank reads whole" if ranks > 1 else alone
    table.add_row("while it loads", size(plan.loading), "", f"of host memory: {loading}")
    tokens = mix.requests * mix.context
    behind = ", less what is outside sliding windows" if plan.cache < tokens * plan.token else ""
    because = f"{mix.requests} requests x {mix.context} tokens x {size(plan.token)}{behind}"
    table.add_row("cache", size(plan.cache), most["cache"], because)
    table.add_row(
        "an adapter",
        size(plan.adapter),
        most["adapter"],
        f"rank {mix.rank} on {mix.targets}: {plan.share:.2%} of the base, {plan.adapter_tensors:,} PEFT tensors",
    )
    if mix.policies:
        _add_training(table, device, mix, plan)
    if plan.target_modules:
        table.add_row("targetModules", "", "", f"to set in the BaseModel: {', '.join(plan.target_modules)}")
    usable = size(plan.memory // len(plan.held))
    table.add_row("memory", size(plan.memory), usable, f"10% of {size(device.memory)} is kept in reserve")
    _add_fit(table, device, mix, plan, quantised=can_keep_experts(shape) and not shape.keeps_quantised_experts)
    if plan.refusal:
        table.add_row("served", "[yellow]not yet[/]", "", plan.refusal)
    table.add_row("cold load", seconds(plan.from_host), "", "from host memory; transfer alone, as below")
    table.add_row("", seconds(plan.from_disk), "", f"from the local disk: a packed file of {size(plan.adapter_file)}")
    answers = "from storage; its latency, digests, and packing of PEFT's files come on top"
    table.add_row("", seconds(plan.from_network), "", answers)
    return table


def _published(shape: BaseShape) -> str:
    """Describe the format of the weights' files and what the engine does with it."""
    form = _form(shape)
    if not form:
        return "two bytes per parameter"
    if not shape.keeps_quantised_experts:
        return f"{form}; dequantised when loaded"
    rest = "" if form.startswith("experts") else ", others dequantised"
    return f"{form}; experts stay quantised{rest}"


def _form(shape: BaseShape) -> str:
    if isinstance(shape.files, Float8):
        blocks = f"in blocks of {shape.files.rows} x {shape.files.columns}"
        kind = {BY_TENSOR: "float8 per tensor", BY_CHANNEL: "float8 per channel", MXFP8: "MXFP8"}
        return f"linears in {kind.get(shape.files, f'float8 {blocks}')}"
    if isinstance(shape.files, Mxfp4):
        return "experts in MXFP4"
    if isinstance(shape.files, Nvfp4):
        return f"linears in NVFP4{', others in float8' if shape.files.mixed else ''}"
    if isinstance(shape.files, Integers):
        packed = {each.kind for each in shape.linears if each.plain < each.count}
        where = "experts" if packed == {"expert"} else "linears"
        return f"{where} in INT{shape.files.bits} {_scaled(shape.files)}"
    return ""


def _scaled(files: Integers) -> str:
    if files.columns:
        return f"in groups of {files.columns}"
    return "per channel" if files.rows else "per tensor"


def _add_training(table: Table, device: Device, mix: Mix, plan: Plan) -> None:
    """Add rows for the policies' memory besides their slots, and for an update's activations."""
    own, saved = mix.policies * (plan.policy + plan.policy_parts), plan.policy_saved
    least = size(own + saved if device.one_memory else saved)
    table.add_row(
        "training",
        size(own),
        size(plan.held[0].training),
        f"{mix.policies:,} policies of rank {mix.policy_rank}, each with four float32 vectors and a rounded copy"
        + ("" if device.one_memory else ", all on the first rank")
        + (f", and {size(plan.policy_parts)} for one on all ranks in an update" if plan.policy_parts else "")
        + f"; {size(saved)} of host memory to save one at a time; set hostMemory to at least {least}",
    )
    kept = [each.activations for each in plan.held]
    table.add_row(
        "activations",
        size(sum(kept)),
        size(max(kept)),
        f"kept for the backward pass, also of an example of {mix.context:,} tokens, which is trained at once",
    )


def _add_fit(table: Table, device: Device, mix: Mix, plan: Plan, *, quantised: bool) -> None:
    if plan.fits:
        left = plan.slots < mix.adapters
        room = size(min(each.room for each in plan.held))
        most = ", the most an engine can have" if plan.slots + mix.policies == MOST_SLOTS and left else ""
        beside = f"; {mix.policies:,} more for the policies" if mix.policies else ""
        table.add_row("slots", f"{plan.slots:,}", room, f"of {mix.adapters:,} wanted, in what remains{most}{beside}")
        table.add_row("engines", f"{plan.engines:,}", "", "to hold all of them in slots at once")
        return
    least, need = plan.least, max(each.least for each in plan.held)
    if least is not None:
        nodes = f"on {least.nodes} nodes of {device.node}" if least.nodes > 1 else "on one node"
        fits = f"{least.ranks} such devices {nodes} are the fewest that fit; use --tensor-parallel {least.ranks}"
    elif device.one_memory:
        fits = "ranks on one machine share its memory; use one with more, or other devices"
    else:
        smaller = "train fewer policies" if mix.policies else "a smaller mix"
        fits = f"not with {MOST_RANKS} ranks either, the maximum; use larger devices, or {smaller}"
    stay = "; quantised experts take less: see --quantised-experts" if quantised else ""
    table.add_row("slots", "[red]none[/]", size(need), f"needed for one; {fits}{stay}")


def adapters_table(shape: BaseShape, device: Device, ranks: int, mix: Mix, dtype: str, weights: int) -> Table:
    """Return a table of adapter sizes by rank and targets, with their share of the base and how many fit."""
    table = Table("rank", *KINDS, title="adapters: size, share of the base, slots that fit")
    for rank in _RANKS:
        cells = []
        for targets in KINDS:
            each = shape.adapter_elements(rank, targets) * DTYPE_BYTES[dtype]
            other = msgspec.structs.replace(mix, rank=rank, targets=targets)
            slots = min(held.slots for held in hold(shape, device, ranks, other, dtype))
            cells.append(f"{size(each)}  {each / weights:.2%}  {slots:,}")
        table.add_row(str(rank), *cells)
    return table


def layouts_table(plan: Plan, mix: Mix, dtype: str) -> Table:
    """Return a table of the sizes and ranks that an adapter on routed experts needs, by PEFT's configuration."""
    table = Table("PEFT 0.21 config", "packed", "tensors", "maxRank", title=f"layouts of rank {mix.rank}")
    for each in plan.layouts:
        table.add_row(
            each.peft_config, size(each.elements * DTYPE_BYTES[dtype]), f"{each.tensors:,}", str(each.max_rank)
        )
    return table


def size(count: int) -> str:
    """Format bytes for people, in powers of ten, as vendors count memory."""
    for unit, name in _UNITS:
        if abs(count) >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def seconds(time: float) -> str:
    """Format a duration for people."""
    return f"{time:.3g} s" if time >= 1 else f"{time * 1e3:.3g} ms"

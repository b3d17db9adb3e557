"""What `mint plan` shows, as rich tables."""

from rich.table import Table

from mint_gateway.planning.devices import Device
from mint_gateway.planning.fit import Mix, Plan
from mint_gateway.planning.shape import KINDS, BaseShape

_RANKS = (1, 8, 16, 32, 64)
_UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def plan_table(shape: BaseShape, device: Device, devices: int, mix: Mix, plan: Plan) -> Table:
    """One row a figure, and what it is made of."""
    table = Table("what", "comes to", "because", title=f"{shape.model_type} on {devices} x {device.name}")
    table.add_row("weights", size(plan.weights), f"{plan.parameters / 1e9:,.2f} billion parameters")
    table.add_row("cache", size(plan.cache), f"{mix.requests} requests x {mix.context} tokens x {size(plan.token)}")
    table.add_row(
        "an adapter",
        size(plan.adapter),
        f"rank {mix.rank} on {mix.targets}: {plan.share:.2%} of the base, {plan.adapter_tensors:,} tensors by PEFT",
    )
    table.add_row("memory", size(plan.memory), f"a tenth of {size(device.memory)} a device kept back")
    if plan.fits:
        table.add_row("slots", f"{plan.slots:,}", f"of {mix.adapters:,} wanted, in {size(plan.room)}")
        table.add_row("engines", f"{plan.engines:,}", "that hold all of them in slots at once")
    else:
        table.add_row("slots", "[red]none[/]", f"an engine needs {plan.devices_needed} such devices for one")
    table.add_row("cold load", seconds(plan.from_host), "from the host's memory")
    table.add_row("", seconds(plan.from_disk), "from the local disk")
    table.add_row("", seconds(plan.from_network), "from storage")
    return table


def adapters_table(shape: BaseShape, dtype_bytes: int, weights: int, room: int) -> Table:
    """An adapter's size by rank and targets, its share of the base, and how many fit the engine's room."""
    table = Table("rank", *KINDS, title="adapters: bytes, share of the base, slots there is room for")
    for rank in _RANKS:
        cells = []
        for targets in KINDS:
            each = shape.adapter_elements(rank, targets) * dtype_bytes
            cells.append(f"{size(each)}  {each / weights:.2%}  {room // each:,}")
        table.add_row(str(rank), *cells)
    return table


def size(count: int) -> str:
    """Bytes as people say them: powers of ten, as vendors count memory."""
    for unit, name in _UNITS:
        if abs(count) >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} B"


def seconds(time: float) -> str:
    """A time as people say it."""
    return f"{time:.3g} s" if time >= 1 else f"{time * 1e3:.3g} ms"

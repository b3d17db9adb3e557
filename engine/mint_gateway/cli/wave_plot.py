"""Plotting a wave's rewards, and other figures of its steps, with matplotlib (the extra `plot`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mint_contracts.errors import InvalidRequest
from mint_contracts.training_pb2 import PolicyProgress, WaveProgress

WINDOW = 5  # steps that the main curve is averaged over; a faint curve shows single steps
MOST_NAMED = 20  # policies in the legend; with more there is no legend
COLUMNS = 3  # of panels below the rewards
PANELS = {
    "completion_length": "completion length (tokens)",
    "truncated": "completions cut off (share)",
    "entropy": "entropy (nats per token)",
    "clipped": "tokens clipped (share)",
    "kl": "KL to the base",
    "grad_norm": "gradient norm",
    "evaluation": "evaluation (mean reward)",
}


def plot(progress: WaveProgress, path: Path) -> int:
    """Write the curves of all policies to a file; return the last step drawn.

    Each figure of the steps has a panel, unless it is 0 throughout, as KL is without a coefficient. Raises
    InvalidRequest if matplotlib is missing, does not know the file's extension, or cannot write the file.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        message = "needs matplotlib; install mint-kubernetes[plot]"
        raise InvalidRequest("mint wave plot", message) from None
    policies = sorted(progress.policies, key=lambda each: each.policy)
    panels = [name for name in PANELS if any(getattr(each, name) for policy in policies for each in policy.curve)]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(10, 5.5 + 2.2 * rows), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1 + rows, COLUMNS, height_ratios=[5.5, *[2.2] * rows])
    axes = figure.add_subplot(grid[0, :])
    steps = _draw_rewards(axes, policies)
    axes.set(xlabel="step", ylabel="mean reward of a step", title=_title(progress))
    for place, name in enumerate(panels):
        row, column = divmod(place, COLUMNS)
        _draw_figure(figure.add_subplot(grid[1 + row, column]), policies, name)
    left, right = zip(*(each.get_xlim() for each in figure.axes), strict=True)
    for each in figure.axes:
        each.set_xlim(min(left), max(right))
        each.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    if policies and len(policies) <= MOST_NAMED and steps:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize="small", frameon=False)
    try:
        canvas.print_figure(path, dpi=140)
    except ValueError as error:  # matplotlib lists the extensions that it knows
        raise InvalidRequest(f"file {path}", f"cannot be drawn: {error}") from None
    except OSError as error:
        raise InvalidRequest(f"file {path}", f"could not be written ({error.strerror})") from None
    return steps


def smoothed(values: list[float], window: int = WINDOW) -> list[float]:
    """Return the mean of each value and up to `window` - 1 values before it."""
    return [sum(values[max(0, end - window) : end]) / min(window, end) for end in range(1, len(values) + 1)]


def _draw_rewards(axes: Any, policies: Sequence[PolicyProgress]) -> int:
    """Draw each policy's rewards in its colour; return the last step drawn."""
    steps = 0
    for number, policy in enumerate(policies):
        values = list(policy.rewards)
        if not values:
            continue
        last = policy.rewards_from + len(values)  # only a long history's end is kept
        at = range(policy.rewards_from + 1, last + 1)
        look = {"label": policy.policy, "color": _colour(number), "marker": _marker(values)}
        axes.plot(at, smoothed(values), linewidth=1.8, **look)
        axes.plot(at, values, linewidth=0.6, alpha=0.3, color=_colour(number))
        steps = max(steps, last)
    return steps


def _draw_figure(axes: Any, policies: Sequence[PolicyProgress], name: str) -> None:
    """Draw one figure of each policy's steps, without those that have none."""
    for number, policy in enumerate(policies):
        points = [each for each in policy.curve if each.HasField(name)]  # type: ignore[arg-type]
        at, values = [each.step for each in points], [getattr(each, name) for each in points]
        look = {"color": _colour(number), "marker": _marker(values)}
        # An evaluation counts until the next.
        axes.plot(at, values, linewidth=1.2, drawstyle="steps-post" if name == "evaluation" else "default", **look)
    axes.set_title(PANELS[name], fontsize="small")
    axes.tick_params(labelsize="small")


def _colour(number: int) -> str:
    return f"C{number}"  # of matplotlib's cycle


def _marker(values: Sequence[float]) -> str | None:
    """A line through a single point would not be seen."""
    return "." if len(values) == 1 else None


def _title(progress: WaveProgress) -> str:
    reward = f", reward {progress.reward_recent:.3f}" if progress.HasField("reward_recent") else ""
    return (
        f"{progress.wave} on {progress.base_model}: {progress.phase}, step {progress.step}/{progress.steps}{reward}"
    )

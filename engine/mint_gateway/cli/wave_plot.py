"""Plotting a wave's rewards with matplotlib (the extra `plot`)."""

from pathlib import Path

from mint_contracts.errors import InvalidRequest
from mint_contracts.training_pb2 import WaveProgress

WINDOW = 5  # steps that the main curve is averaged over; a faint curve shows single steps
MOST_NAMED = 20  # policies in the legend; with more there is no legend


def plot(progress: WaveProgress, path: Path) -> int:
    """Write the curves of all policies to a file; return the last step drawn.

    Raises InvalidRequest if matplotlib is missing, does not know the file's extension, or cannot write the file.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        message = "needs matplotlib; install mint-kubernetes[plot]"
        raise InvalidRequest("mint wave plot", message) from None
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = 0
    for policy in sorted(progress.policies, key=lambda each: each.policy):
        values = list(policy.rewards)
        if not values:
            continue
        last = max(policy.step, len(values))  # only a long history's end is kept; a loading policy reports no step
        at = range(last - len(values) + 1, last + 1)
        [curve] = axes.plot(at, smoothed(values), linewidth=1.8, label=policy.policy)
        axes.plot(at, values, linewidth=0.6, alpha=0.3, color=curve.get_color())
        steps = max(steps, last)
    axes.set(xlabel="step", ylabel="mean reward of a step", title=_title(progress))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if 0 < len(progress.policies) <= MOST_NAMED and steps:
        figure.legend(loc="outside right upper", fontsize="small", frameon=False)
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


def _title(progress: WaveProgress) -> str:
    reward = f", reward {progress.reward_recent:.3f}" if progress.HasField("reward_recent") else ""
    return (
        f"{progress.wave} on {progress.base_model}: {progress.phase}, step {progress.step}/{progress.steps}{reward}"
    )

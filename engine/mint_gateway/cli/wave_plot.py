"""A wave's rewards as a picture, through matplotlib (the extra `plot`)."""

from pathlib import Path

from mint_contracts.errors import InvalidRequest
from mint_contracts.training_pb2 import WaveProgress

WINDOW = 5  # steps that the drawn curve is averaged over; single steps stay visible as a faint one
MOST_NAMED = 20  # policies in the legend; of more the curves alone are telling


def plot(progress: WaveProgress, path: Path) -> int:
    """Write the curves of all policies; returns the steps drawn.

    Raises InvalidRequest where matplotlib is missing, or cannot write a file of that ending, or there.
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
        last = max(policy.step, len(values))  # of a long history only the end is kept; one that loads tells no step
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
    except ValueError as error:  # matplotlib names the endings that it knows
        raise InvalidRequest(f"file {path}", f"cannot be drawn: {error}") from None
    except OSError as error:
        raise InvalidRequest(f"file {path}", f"could not be written ({error.strerror})") from None
    return steps


def smoothed(values: list[float], window: int = WINDOW) -> list[float]:
    """The mean of each value and those before it, as far as the window reaches."""
    return [sum(values[max(0, end - window) : end]) / min(window, end) for end in range(1, len(values) + 1)]


def _title(progress: WaveProgress) -> str:
    reward = f", reward {progress.reward_recent:.3f}" if progress.HasField("reward_recent") else ""
    return (
        f"{progress.wave} on {progress.base_model}: {progress.phase}, step {progress.step}/{progress.steps}{reward}"
    )

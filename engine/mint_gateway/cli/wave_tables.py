"""Training waves as rich tables or as one line: pure."""

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mint_contracts.durations import span
from mint_contracts.escaping import escape_controls
from mint_contracts.training_pb2 import PolicyProgress, WaveProgress
from mint_gateway.cli.showing import cell, table, whole_width

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 24
BAR_WIDTH = 20
FAILURE_WIDTH = 30  # a policy's error is wrapped rather than squeezing the other columns
_FIGURES = {  # by column
    "length": "completion_length", "cut off": "truncated", "entropy": "entropy", "clipped": "clipped", "kl": "kl",
}  # fmt: skip
_HEADS = (
    *("policy", "stage", "step", "", "reward", "best", "eval", "rewards so far"),
    *(*_FIGURES, "s/step", "left", "engine"),
)
# In the order of being dropped.
_DISPENSABLE = ({""}, {"cut off", "clipped"}, {"length", "entropy", "kl"}, {"rewards so far"})
_COLOURS = {"Complete": "green", "Failed": "red", "Cancelled": "yellow", "Paused": "yellow", "Running": "cyan"}


def waves_table(waves: Iterable[WaveProgress]) -> Table:
    """Return a table with one row per wave."""
    shown = table("wave", "base", "phase", "policies", "step", "reward", "best", "tokens", "left", "why")
    for wave in waves:
        shown.add_row(
            cell(wave.wave),
            cell(wave.base_model),
            _coloured(wave.phase),
            str(wave.policy_count),
            f"{wave.step}/{wave.steps}",
            number(wave, "reward_recent"),
            number(wave, "reward_best"),
            f"{wave.tokens:,}",
            span(wave.eta_s) if wave.HasField("eta_s") else "-",
            cell(wave.message),
        )
    return shown


def progress_table(wave: WaveProgress, console: Console, most: int | None = None) -> RenderableType:
    """Show the wave as a line, then one row per policy; bar, reward curve and last step's figures if they fit.

    Of more than `most` policies only so many are shown, first those that have failed.
    """
    policies = wave.policies[:]
    if most is not None and len(policies) > most:
        policies = sorted(policies, key=lambda each: not each.failure_message)[:most]
    told = {head for head, name in _FIGURES.items() if any(getattr(each.figures, name) for each in policies)}
    heads = [head for head in _HEADS if head in told or head not in _FIGURES]
    shown = _policies(policies, heads)
    for columns in _DISPENSABLE:
        if whole_width(shown, console) > console.width:
            heads = [head for head in heads if head not in columns]
            shown = _policies(policies, heads)
    few = f"{len(policies):,} of {len(wave.policies):,} policies, failed ones first; all of them at the end"
    more = [Text(few)] if len(policies) < len(wave.policies) else []
    return Group(Text(line(wave), style="bold"), *more, shown)


def _policies(policies: Sequence[PolicyProgress], heads: Sequence[str]) -> Table:
    shown = table(*heads)
    shown.columns[-1].max_width = FAILURE_WIDTH
    for policy in policies:
        cells: tuple[RenderableType, ...] = (
            cell(policy.policy),
            _coloured(policy.stage),
            f"{policy.step}/{policy.steps}",
            _bar(policy),
            number(policy, "reward_recent"),
            number(policy, "reward_best"),
            number(policy, "evaluation"),
            Text(sparkline(policy.rewards), style=_COLOURS.get(policy.stage, "")),
            *(_figure(policy, name) for name in _FIGURES.values()),
            f"{policy.step_s:.1f}" if policy.step_s else "-",
            span(policy.eta_s) if policy.HasField("eta_s") else "-",
            cell(policy.failure_message or policy.engine or "-"),
        )
        by_head = dict(zip(_HEADS, cells, strict=True))
        shown.add_row(*(by_head[head] for head in heads))
    return shown


def line(wave: WaveProgress) -> str:
    """Return the wave as one line that is safe to print on a terminal."""
    parts = [f"{wave.wave} {wave.phase} {wave.step}/{wave.steps}", f"{wave.policy_count} policies"]
    parts += [
        f"reward {number(wave, 'reward_recent')} (best {number(wave, 'reward_best')})",
        f"{wave.tokens:,} tokens",
    ]
    if wave.HasField("evaluation"):
        parts.insert(-1, f"evaluation {number(wave, 'evaluation')}")
    if wave.HasField("eta_s") and wave.phase == "Training":
        parts.append(f"{span(wave.eta_s)} left")
    revisions = {policy.revision for policy in wave.policies if policy.revision}
    if wave.phase == "Complete":
        parts.append(f"{len(revisions)} revisions published")
    return escape_controls(", ".join(parts) + (f": {wave.message}" if wave.message else ""))


def failures(wave: WaveProgress) -> dict[str, str]:
    """Return for each policy that has failed a line that is safe to print on a terminal, by the policy's name."""
    return {
        each.policy: escape_controls(
            f"{each.policy} {each.stage} {each.step}/{each.steps}: {each.failure_reason}: {each.failure_message}"
        )
        for each in wave.policies
        if each.failure_message
    }


def number(of: WaveProgress | PolicyProgress, field: str) -> str:
    """Return a reward with three decimals, or "-" if there is none yet."""
    return f"{getattr(of, field):.3f}" if of.HasField(field) else "-"  # type: ignore[arg-type]


def _figure(policy: PolicyProgress, name: str) -> str:
    """Return a figure of the last step: a length without decimals, an entropy in nats, a share in percent."""
    if not policy.figures.HasField(name):  # type: ignore[arg-type]
        return "-"
    form = {"completion_length": ".0f", "entropy": ".3f", "kl": ".4f"}.get(name, ".1%")
    return format(getattr(policy.figures, name), form)


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Draw values in at most `width` characters, each the mean of its share, scaled to include 0 and 1."""
    if not values:
        return ""
    count = min(width, len(values))
    shares = [values[index * len(values) // count : (index + 1) * len(values) // count] for index in range(count)]
    means = [sum(share) / len(share) for share in shares]
    low, reach = min(0.0, *means), max(1.0, *means) - min(0.0, *means)
    return "".join(SPARKS[min(len(SPARKS) - 1, int((mean - low) / reach * len(SPARKS)))] for mean in means)


def _bar(policy: PolicyProgress) -> ProgressBar:
    style = _COLOURS.get(policy.stage, "grey50")
    return ProgressBar(
        total=max(1, policy.steps), completed=policy.step, width=BAR_WIDTH, complete_style=style, finished_style=style
    )


def _coloured(word: str) -> Text:
    return Text(escape_controls(word), style=_COLOURS.get(word, ""))

"""The curves of a run, drawn with matplotlib (extra train): one figure a question, stages side by
side.

Every stage has a panel of its own whose x axis counts its own optimiser steps. Colours are those of
Okabe and Ito, told apart by the colour-blind too, and no two series differ in colour alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from forethought.errors import UserError
from forethought.evaluation.run_record import Row, RunRecord, StageRecord

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS: Final = 400
"""Points of a curve in one panel; more steps than that are drawn as means of equal runs of them."""
_NARROWEST: Final = 0.2
"""Width of a panel as a share of the widest one's, at least."""
_SIZE: Final = (4.7, 2.7)
_WIDE: Final = (9.8, 3.2)
"""Inches, of which a page shows 96 pixels each, so that text has the size it says."""

Style = Literal["held-out", "training", "second", "third"]


@dataclass(frozen=True, slots=True)
class Series:
    """One metric: of the optimiser steps, or of the held-out evaluations. ``error``: the metric
    that is drawn as a band of plus and minus one of it."""

    key: str
    label: str
    held_out: bool
    style: Style
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure: ``name`` is its file's, ``caption`` says what is seen, ``unit`` labels the y axis.

    ``wide``: it has the whole width of the page. ``share``: the y axis is from 0 to 1.
    ``own_scale``: every stage has a y axis of its own.
    """

    name: str
    title: str
    caption: str
    unit: str
    series: tuple[Series, ...]
    wide: bool = False
    share: bool = False
    log: bool = False
    own_scale: bool = False


PLOTS: Final = (
    Plot(
        "accuracy",
        "Accuracy",
        "Held-out pass@1 with a band of one standard error over problems, the accuracy of training "
        "samples, and the share of held-out samples in the right form.",
        "share of samples",
        (
            Series("reward_accuracy", "training accuracy", False, "training"),
            Series("reward_format", "held-out format", True, "second"),
            Series("pass_at_1", "held-out pass@1", True, "held-out", "pass_at_1_stderr"),
        ),
        wide=True,
        share=True,
    ),
    Plot(
        "thought_length",
        "Thought length",
        "Mean length of a thought, without its tags.",
        "tokens a thought",
        (
            Series("thought_tokens", "training", False, "training"),
            Series("thought_tokens", "held-out", True, "held-out"),
        ),
    ),
    Plot(
        "reflection_words",
        "Reflection words",
        "Words with which a thought looks back at itself: wait, but, check, mistake and the like.",
        "words a thought",
        (
            Series("reflection_words", "training", False, "training"),
            Series("reflection_words", "held-out", True, "held-out"),
        ),
    ),
    Plot(
        "entropy",
        "Entropy",
        "Entropy of the sampler's choice, mean over sampled tokens.",
        "entropy, nats a token",
        (Series("entropy", "training", False, "training"),),
    ),
    Plot(
        "kl_sampler_trainer",
        "KL(sampler, trainer)",
        "How far sampler and trainer disagree about the same weights; only values above zero have "
        "a place on this axis.",
        "KL, nats a token (log scale)",
        (Series("kl_sampler_trainer", "training", False, "training"),),
        log=True,
    ),
    Plot(
        "lost_samples",
        "Truncated samples, dead groups",
        "Samples cut off at the token limit, and groups in which all samples got the same reward "
        "and so taught nothing.",
        "share of samples, of groups",
        (
            Series("truncated", "truncated, training", False, "training"),
            Series("dead_groups", "dead groups", False, "third"),
            Series("truncated", "truncated, held-out", True, "held-out"),
        ),
        share=True,
    ),
    Plot(
        "loss",
        "Loss",
        "Each stage has its own scale: a policy loss and a cross-entropy do not compare.",
        "loss",
        (Series("loss", "training", False, "training"),),
        own_scale=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot drawn: a PNG on white, and SVGs on nothing for light and dark pages."""

    plot: Plot
    png: bytes
    light: bytes
    dark: bytes


_INK: Final = "#1f2328"
_QUIET: Final = "#656c76"
_GRID: Final = "#e4e6ea"
_COLOURS: Final[Mapping[Style, str]] = {
    "held-out": "#0072b2",
    "training": "#c2571a",
    "second": "#00805e",
    "third": "#9c4f86",
}
_ON_DARK: Final[Mapping[str, str]] = {
    _INK: "#e6e8eb",
    _QUIET: "#9aa3ad",
    _GRID: "#2e343b",
    "#0072b2": "#56b4e9",
    "#c2571a": "#e69f00",
    "#00805e": "#35c79a",
    "#9c4f86": "#d997be",
}
"""What each colour becomes on a dark page."""


class Point(NamedTuple):
    """A point of a curve: the mean of a run of steps, and the least and most of them."""

    x: float
    y: float
    low: float
    high: float


def require_matplotlib() -> None:
    """Raises UserError with the install line where matplotlib is missing."""
    if find_spec("matplotlib") is None:
        raise UserError(
            "A report needs matplotlib, which the base install leaves out; install it with: "
            "pip install 'forethought[train]'"
        )


def plots_of(run: RunRecord) -> list[Plot]:
    """The plots for which the run has at least one value."""
    return [plot for plot in PLOTS if any(_has(plot, stage) for stage in run.stages)]


def draw(plot: Plot, run: RunRecord) -> Picture:
    """The plot of a run; the same run gives the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_settings()):
        figure = Figure(figsize=_WIDE if plot.wide else _SIZE, layout="constrained")
        _panels(figure, plot, run)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.set_layout_engine("none")  # everything stays where it is now
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    text = svg.getvalue().decode("utf-8")
    for colour, on_dark in _ON_DARK.items():
        text = text.replace(colour, on_dark)
    return Picture(plot, png.getvalue(), svg.getvalue(), text.encode("utf-8"))


def binned(steps: Sequence[float], values: Sequence[float], most: int) -> list[Point]:
    """A curve of at most ``most`` points, each of an equally long run of steps."""
    length = max(1, math.ceil(len(values) / most))
    points = []
    for start in range(0, len(values), length):
        part = values[start : start + length]
        xs = steps[start : start + length]
        points.append(Point(sum(xs) / len(xs), sum(part) / len(part), min(part), max(part)))
    return points


def _rows(series: Series, stage: StageRecord, usable: Callable[[float], bool]) -> list[Row]:
    rows = stage.evaluations if series.held_out else stage.steps
    return [row for row in rows if series.key in row.values and usable(row.values[series.key])]


def _usable(plot: Plot) -> Callable[[float], bool]:
    return (lambda value: value > 0) if plot.log else (lambda value: True)


def _has(plot: Plot, stage: StageRecord) -> bool:
    return any(_rows(series, stage, _usable(plot)) for series in plot.series)


def _panels(figure: Figure, plot: Plot, run: RunRecord) -> None:
    stages = [stage for stage in run.stages if _has(plot, stage)]
    # By the root of what is drawn, so that few points beside many can still be read.
    counts = [
        max(len(_rows(series, stage, _usable(plot))) for series in plot.series) for stage in stages
    ]
    widths = [max(math.sqrt(count), _NARROWEST * math.sqrt(max(counts))) for count in counts]
    grid = figure.subplots(
        1, len(stages), sharey=not plot.own_scale, squeeze=False, width_ratios=widths
    )
    drawn: dict[str, Artist] = {}
    for at, (axes, stage) in enumerate(zip(grid[0], stages, strict=True)):
        for series in plot.series:
            rows = _rows(series, stage, _usable(plot))
            if rows:
                drawn.setdefault(series.label, _curve(axes, series, rows))
        ticks = round((9 if plot.wide else 5) * widths[at] / sum(widths))
        _dress(axes, plot, stage, ticks=max(1, ticks), first=at == 0)
    for axes in grid[0]:
        _scale(axes, plot)
    figure.supxlabel("optimiser step of the stage", color=_QUIET, size=8.5)
    if len(plot.series) > 1:
        labels = [series.label for series in plot.series[::-1] if series.label in drawn]
        handles = [drawn[label] for label in labels]
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))


def _last(stage: StageRecord) -> int:
    return max((row.step for row in (*stage.steps, *stage.evaluations)), default=0)


def _curve(axes: Axes, series: Series, rows: list[Row]) -> Artist:
    """Draw one series; what a legend shows for it."""
    colour = _COLOURS[series.style]
    steps = [float(row.step) for row in rows]
    values = [row.values[series.key] for row in rows]
    if not series.held_out:
        points = binned(steps, values, _MOST_POINTS)
        xs = [point.x for point in points]
        if len(points) < len(values):
            lows, highs = [point.low for point in points], [point.high for point in points]
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.2, lw=0)
        dashes = (0, (5, 1.5)) if series.style == "third" else "-"
        mark = "." if len(points) == 1 else ""
        return axes.plot(
            xs, [p.y for p in points], color=colour, lw=0.9, ls=dashes, marker=mark, alpha=0.9
        )[0]
    if series.error is not None:
        errors = [row.values.get(series.error, 0.0) for row in rows]
        lows = [value - error for value, error in zip(values, errors, strict=True)]
        highs = [value + error for value, error in zip(values, errors, strict=True)]
        axes.fill_between(steps, lows, highs, color=colour, alpha=0.22, lw=0)
        # A band over a single step has no width: the bar is what is seen of it.
        axes.vlines(steps, lows, highs, color=colour, lw=0.8, alpha=0.5)
    second = series.style == "second"
    return axes.plot(
        steps,
        values,
        color=colour,
        lw=1.1 if second else 1.8,
        ls=(0, (3, 2)) if second else "-",
        marker="s" if second else "o",
        ms=2.5 if second else 3.5,
        clip_on=False,
    )[0]


def _dress(axes: Axes, plot: Plot, stage: StageRecord, *, ticks: int, first: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(stage.name.encode("ascii", "replace").decode(), loc="left")
    last = max(1, _last(stage))
    axes.set_xlim(-0.03 * last, 1.03 * last)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    if first:
        axes.set_ylabel(plot.unit)
    elif not plot.own_scale:
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)


def _scale(axes: Axes, plot: Plot) -> None:
    """The y axis, once all that shares it is drawn."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    low, high = axes.dataLim.intervaly
    if plot.share:
        axes.set_ylim(-0.02, 1.02)
    elif plot.log:
        axes.set_yscale("log")
        # From one power of ten to another: at least two of them get a label.
        bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
        axes.set_ylim(10.0**bottom, 10.0 ** max(top, bottom + 1))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif not plot.own_scale:
        axes.set_ylim(bottom=0)


def _settings() -> dict[Any, object]:
    return {
        "font.family": "DejaVu Sans",
        "font.size": 8.5,
        "text.parse_math": False,
        "text.color": _INK,
        "axes.labelcolor": _QUIET,
        "axes.titlecolor": _QUIET,
        "axes.titlesize": 8.5,
        "axes.edgecolor": _GRID,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": _GRID,
        "grid.linewidth": 0.8,
        "figure.facecolor": "white",
        "xtick.color": _GRID,
        "ytick.color": _GRID,
        "xtick.labelcolor": _QUIET,
        "ytick.labelcolor": _QUIET,
        "xtick.minor.visible": False,
        "ytick.minor.size": 0,
        "legend.frameon": False,
        "legend.labelcolor": _INK,
        "svg.fonttype": "path",
        "svg.hashsalt": "forethought",
        "path.simplify": True,
    }

"""Small multiples of a sweep's tasks: each discontinuous metric over training compute, its continuous partner below."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pretrain.plan.emergence import cells, frontier

PANEL, DPI = (1.6, 1.4), 90
COLOURS = matplotlib.colormaps["viridis"]


def draw_emergence(result: Mapping[str, Any]) -> bytes:
    """A PNG: a column a task, a row a metric, a colour an answer length; up is better in every panel.

    Points are all checkpoints; lines join the best model of each budget. With one budget the x axis is parameters, and
    lines join all finished models.
    """
    tasks = list(dict.fromkeys(row["task"] for row in result["scores"]))
    names = [name for pair in result["pairs"] for name in pair]
    best = frontier(result["checkpoints"])
    x_name, label = ("flops", "training FLOPs") if len(best) > 1 else ("params", "parameters")
    if len(best) <= 1:
        best = sorted((c for c in result["checkpoints"] if c["final"]), key=lambda c: c["params"])
    size = (PANEL[0] * len(tasks) + 1.1, PANEL[1] * len(names) + 0.8)
    figure = Figure(size, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(names), len(tasks), sharex=True, sharey="row", squeeze=False)
    for axes_row, name in zip(grid, names, strict=True):
        metric = result["metrics"][name]
        for axes, task in zip(axes_row, tasks, strict=True):
            _draw_panel(axes, result, task, name, x_name, best)
            if metric["chance"] is not None:
                axes.axhline(metric["chance"], color="grey", linewidth=0.8, linestyle="--")
        axes_row[0].set_ylabel(_wrapped(metric["title"]), fontsize=8)
        if not metric["continuous"]:
            axes_row[0].set_ylim(-0.02, max(0.1, 1.05 * axes_row[0].get_ylim()[1]))  # a share, also where all are 0
        if not metric["higher_is_better"]:
            axes_row[0].invert_yaxis()  # shared by the row
    for axes, task in zip(grid[0], tasks, strict=True):
        axes.set_title(_wrapped(result["tasks"][task]["title"]), fontsize=9)
        axes.legend(title="answer size", fontsize=6, title_fontsize=6, frameon=False, loc="upper left", ncols=2,
                    handlelength=0.8, columnspacing=0.8, borderaxespad=0.1)  # fmt: skip
    figure.supxlabel(f"{label}; up is better; dashed: chance", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _draw_panel(axes: Axes, result: Mapping[str, Any], task: str, name: str, x_name: str, best: Sequence) -> None:
    x_of = {(c["run"], c["step"]): c[x_name] for c in result["checkpoints"]}
    sizes = result["tasks"][task]["sizes"]
    for (of_task, size), scores in cells(result).items():
        if of_task != task:
            continue
        colour = COLOURS(0.85 * sizes.index(size) / max(1, len(sizes) - 1))
        axes.plot([x_of[key] for key in scores], [row[name] for row in scores.values()], ".", color=colour,
                  markersize=4, alpha=0.5, markeredgewidth=0)  # fmt: skip
        line = [(x_of[key], scores[key][name]) for key in ((c["run"], c["step"]) for c in best) if key in scores]
        axes.plot(*zip(*line, strict=True), "o-", color=colour, markersize=2.5, linewidth=1.1, label=str(size))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0e}".replace("e+", "e")))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.tick_params(labelsize=6.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _wrapped(title: str) -> str:
    """A title on two lines where it has a comma."""
    head, comma, tail = title.partition(", ")
    return f"{head}\n{tail}" if comma else title

"""Pictures of a scaling fit, as PNG: IsoFLOP curves, loss contours with the efficient frontier, residuals."""

import io

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatterSciNotation, LogLocator, NullFormatter

from pretrain.core.storage import Path, write_bytes
from pretrain.plan.fit import Fit
from pretrain.plan.points import Points
from pretrain.plan.valleys import Valleys, budgets_of

SIZE, DPI = (6.4, 4.4), 120
COLOURS = matplotlib.colormaps["viridis"]
PARAMETERS = EngFormatter(sep="")  # 20k, 5M
FLOPS = LogFormatterSciNotation(minor_thresholds=(np.inf, np.inf))


def draw_all(points: Points, fit: Fit, valleys: Valleys | None, folder: Path) -> list[Path]:
    """Writes `isoflop.png`, `contours.png` and `residuals.png` into a folder; returns their paths."""
    pictures = {
        "isoflop.png": draw_isoflop(points, fit, valleys),
        "contours.png": draw_contours(points, fit),
        "residuals.png": draw_residuals(points, fit),
    }
    for name, content in pictures.items():
        write_bytes(folder / name, content)
    return [folder / name for name in pictures]


def _figure(xlabel: str, ylabel: str, title: str):
    figure = Figure(SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log")
    _mark(axes.xaxis, PARAMETERS if xlabel == "parameters" else FLOPS)
    axes.grid(alpha=0.25, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _mark(axis, formatter) -> None:
    """1, 2, 5, 10 ... along a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(formatter)
    axis.set_minor_formatter(NullFormatter())


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw_isoflop(points: Points, fit: Fit, valleys: Valleys | None) -> bytes:
    """Loss over model size, one curve a budget: points, the law's curve, and each parabola's lowest point."""
    figure, axes = _figure("parameters", "loss (nats a token)", "Equal compute: measured, and the law's curve")
    groups = budgets_of(points)
    for index, group in enumerate(groups):
        colour = COLOURS(0.1 + 0.8 * index / max(1, len(groups) - 1))
        n, flops = points.params[group], float(np.exp(np.log(points.flops[group]).mean()))
        axes.plot(n, points.loss[group], "o", color=colour, label=f"{flops:.2g} FLOPs", markersize=5)
        if len(group) > 1:
            fine = np.geomspace(n.min() / 1.3, n.max() * 1.3, 100)
            axes.plot(fine, fit.law.loss(fine, flops / (6 * fine)), color=colour, linewidth=1.4)
    for valley in valleys.valleys if valleys else ():
        axes.plot(valley.params, valley.loss, "v", color="black", markersize=6)
    axes.legend(fontsize=8, frameon=False, ncols=2, title="black: the lowest points of parabolas" if valleys else None,
                title_fontsize=8)  # fmt: skip
    return _png(figure)


def draw_contours(points: Points, fit: Fit) -> bytes:
    """Contours of the law over compute and size, the runs, and the efficient frontier."""
    figure, axes = _figure("compute (FLOPs)", "parameters", "Loss by the law; dashed: the best size for a budget")
    flops = np.geomspace(points.flops.min() / 2, points.flops.max() * 10, 120)
    params = np.geomspace(points.params.min() / 2, points.params.max() * 4, 120)
    grid_c, grid_n = np.meshgrid(flops, params)
    loss = fit.law.loss(grid_n, grid_c / (6 * grid_n))
    levels = np.quantile(loss, np.linspace(0.02, 0.75, 10))
    contours = axes.contour(grid_c, grid_n, loss, levels=np.unique(levels), cmap="viridis", linewidths=1)
    axes.clabel(contours, fmt="%.2f", fontsize=7)
    axes.plot(flops, [fit.law.optimum(c).params for c in flops], "--", color="crimson", linewidth=1.6)
    axes.scatter(
        points.flops, points.params, c=points.loss, cmap="viridis", norm=contours.norm, s=30, edgecolors="black",
        linewidths=0.5, zorder=3,
    )  # fmt: skip
    axes.set_yscale("log")
    _mark(axes.yaxis, PARAMETERS)
    axes.set_ylim(params[0], params[-1])
    return _png(figure)


def draw_residuals(points: Points, fit: Fit) -> bytes:
    """Measured over predicted loss, by compute: no trend should be left."""
    figure, axes = _figure("compute (FLOPs)", "measured over predicted loss, %", "What the law leaves unexplained")
    axes.axhline(0, color="grey", linewidth=0.8)
    shown = axes.scatter(points.flops, 100 * np.expm1(fit.residuals), c=np.log10(points.params), cmap="viridis", s=26)
    figure.colorbar(shown, label="parameters", format=lambda value, _: PARAMETERS(10**value))
    return _png(figure)

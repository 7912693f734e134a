"""Training curves as inline SVG: the same bytes for the same numbers, in the page's own colours, light or dark.

Matplotlib draws in stand-in colours, which are then exchanged for the page's CSS variables.
"""

import dataclasses
import io
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from pretrain.report.markup import Markup, element

POINTS = 300  # a longer curve is drawn as means, in a band from the least to the greatest value
SIZE = 5.0, 2.9  # inches, of 72 pixels
TEXT, LINE, FIRST, SECOND = "#010203", "#040506", "#070809", "#0a0b0c"
VARIABLES = {TEXT: "var(--soft)", LINE: "var(--line)", FIRST: "var(--first)", SECOND: "var(--second)"}
SETTINGS = {
    "svg.fonttype": "none",  # letters stay letters: small, searchable and in the page's font
    "font.size": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: its name in the legend.
        x, y: [n] values; where y is not finite, the line has a gap.
        dots: marks each point; for values far apart.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    dots: bool = False


def plot(title: str, curves: Sequence[Curve], x_label: str, *, x_unit: str = "", log: bool = False) -> Markup:
    """A line plot with its caption, as SVG inside `<figure>`.

    Args:
        title: caption, and what a screen reader says.
        curves: one or two lines.
        x_label: what the horizontal axis counts.
        x_unit: the axis counts large numbers of this unit and gets k, M, G ... in front of it.
        log: logarithmic vertical axis.
    """
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": f"{title} {x_label}"}):
        figure = Figure(SIZE, layout="constrained")
        axes = figure.add_subplot()
        for curve, colour in zip(curves, (FIRST, SECOND), strict=False):
            _draw(axes, curve, colour)
        axes.set_xlabel(x_label)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if x_unit:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if log and _largest(curves) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_locator(NullLocator())
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            if _largest(curves) >= 1e4:
                axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        if len(curves) > 1:
            axes.legend(loc="best")
        return element("figure", element("figcaption", title), _inline(figure, f"{title} by {x_label}"))


def _draw(axes, curve: Curve, colour: str) -> None:
    x, low, y, high = thinned(curve.x, curve.y)
    if not np.array_equal(low, high, equal_nan=True):
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    dots = curve.dots or len(x) == 1
    axes.plot(x, y, color=colour, linewidth=1.8, label=curve.label, marker="o" if dots else None, markersize=4)


def thinned(
    x: np.ndarray, y: np.ndarray, points: int = POINTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """At most `points` points: (x, least y, mean y, greatest y) of neighbours together.

    Values that are not finite count for nothing; where there are no others, the result is not a number.
    """
    parts = np.array_split(np.arange(len(x)), min(points, len(x)))
    rows = []
    for part in parts:
        values = y[part][np.isfinite(y[part])]
        least, mean, greatest = (values.min(), values.mean(), values.max()) if values.size else [np.nan] * 3
        rows.append((x[part[-1]], least, mean, greatest))
    return tuple(np.array(rows, float).reshape(-1, 4).T)


def _largest(curves: Sequence[Curve]) -> float:
    return max((float(np.nanmax(curve.y)) for curve in curves if np.isfinite(curve.y).any()), default=0.0)


def _inline(figure: Figure, label: str) -> Markup:
    """The figure's `<svg>` without what only a file of its own needs."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"/>', "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # these ids would repeat in every figure of the page
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    opening, rest = svg.split(">", 1)
    return Markup(f"{opening}>{element('title', label)}{rest}")

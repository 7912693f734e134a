"""Part of the report about a sweep: the law fitted to its runs, its intervals, its predictions and its pictures."""

import base64
from collections.abc import Iterator

from pretrain.report.markup import Markup, element, table
from pretrain.report.quantities import count, short, significant
from pretrain.report.results import Results

PARAMETERS = ("E", "A", "B", "alpha", "beta", "N_opt_exponent", "D_opt_exponent")
PICTURES = {
    "isoflop.png": "Runs of equal compute, and the law's curve through them",
    "contours.png": "Loss by the law, and the best size for a budget",
    "residuals.png": "What the law leaves unexplained",
}


def law(results: Results) -> Iterator[Markup]:
    """What `pretrain scaling fit` found."""
    fit = results.scaling
    yield element("p", f"L(N, D) = E + A / N^alpha + B / D^beta, fitted to {count(fit['points'])} runs; mean error "
                       f"{100 * fit['mean_abs_log_residual']:.2f} %.")  # fmt: skip
    columns = (fit, fit["projection"], fit["isoflop"])
    rows = []
    for name in PARAMETERS:
        values = [significant(other[name], 4) if name in other else "-" for other in columns]
        low_high = fit["intervals"].get(name)
        interval = " to ".join(significant(value, 4) for value in low_high) if low_high else "-"
        rows.append([name, values[0], interval, *values[1:]])
    yield table(["parameter", "fit", "95 % interval", "projection", "parabolas"], rows)
    if fit["held_out"]:
        header = ["held-out run", "tokens", "measured loss", "predicted", "error"]
        yield table(header, [
            [f"{short(run['params'])} parameters", short(run["tokens"]), significant(run["loss"], 4),
             significant(run["predicted"], 4), f"{100 * run['relative_error']:+.2f} %"]
            for run in fit["held_out"]
        ])  # fmt: skip
    if "missing" in fit["isoflop"]:
        yield element("p", f"No parabolas: {fit['isoflop']['missing']}.")
    for name, caption in PICTURES.items():
        if name in results.pictures:
            yield _picture(caption, results.pictures[name])


def _picture(caption: str, png: bytes) -> Markup:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    image = Markup(f'<img alt="{caption}" src="{source}" style="max-width:100%">')
    return element("figure", element("figcaption", caption), image)

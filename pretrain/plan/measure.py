"""From a file of runs to what is known of their law: parametric fit, parabolas, projection, held-out error."""

import dataclasses
import json
from typing import Any

import numpy as np

from pretrain.core.errors import UserError, check
from pretrain.core.storage import Path, write_text
from pretrain.plan.fit import NAMES, Fit, fit_by_projection, fit_law, held_out_error
from pretrain.plan.points import Points, read_points
from pretrain.plan.valleys import Valleys, fit_valleys


def measure(
    path: str, *, resamples: int = 1000, exclude_highest: int = 0, folder: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Fits the runs of a CSV file; the result's keys are those of `Fit.to_json`, with the other methods beside them.

    Args:
        path: the CSV file; see `read_points`. Runs marked in a column `held_out` are predicted, not fitted.
        resamples: of the bootstrap.
        exclude_highest: runs of so many highest losses are left out.
        folder: where fit.json and plots go; None writes nothing.
        seed: of the bootstrap.
    """
    points, held = read_points(path)
    check(exclude_highest < len(points), f"--exclude_highest={exclude_highest} leaves none of {len(points)} points")
    if exclude_highest:
        points = points.where(np.argsort(np.argsort(points.loss)) < len(points) - exclude_highest)
    fit = fit_law(points, resamples=resamples, seed=seed)
    valleys, why_not = _valleys(points)
    result = {
        **fit.to_json(),
        "points": len(points),
        "mean_abs_log_residual": float(np.abs(fit.residuals).mean()),
        "leave_out_largest_budget_error": held_out_error(points),
        "held_out": _predictions(fit, held),
        "projection": _projection(points),
        "isoflop": valleys.to_json() if valleys else {"missing": why_not},
        "resampled": fit.law.resampled and fit.law.resampled.to_json(),
    }
    if folder is not None:
        from pretrain.plan.plots import draw_all

        write_text(folder / "fit.json", json.dumps(result, indent=2) + "\n")
        draw_all(points, fit, valleys, folder)
    return result


def _valleys(points: Points) -> tuple[Valleys | None, str | None]:
    try:
        return fit_valleys(points), None
    except UserError as error:
        return None, str(error)


def _projection(points: Points) -> dict[str, float]:
    law = fit_by_projection(points)
    exponents = {"N_opt_exponent": law.params_exponent, "D_opt_exponent": law.tokens_exponent}
    return {**{name: getattr(law, name) for name in NAMES}, **exponents}


def _predictions(fit: Fit, held: Points | None) -> list[dict[str, Any]]:
    """Each held-out run's measured and predicted loss."""
    rows = []
    for params, tokens, loss in zip(*(dataclasses.astuple(held)[:3] if held else ((), (), ())), strict=True):
        predicted = float(fit.law.loss(params, tokens))
        interval = fit.law.loss_interval(params, tokens)
        rows.append({
            "params": params, "tokens": tokens, "loss": loss, "predicted": predicted,
            "interval": interval and list(interval), "relative_error": predicted / loss - 1,
        })  # fmt: skip
    return rows

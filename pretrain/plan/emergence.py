"""How sharply a sweep's metrics rise with compute: the emergence score, and tables of it beside the metrics.

Srivastava et al. 2022 (arXiv:2206.04615, "breakthroughness") and Schaeffer et al. 2023 (arXiv:2304.15004, section 4):
for values y of models in order of scale,

    score = sign(argmax y - argmin y) * (max y - min y) / sqrt(median of (y[i] - y[i - 1]) ** 2)

A straight line of n steps has the score n; a flat line with one jump has a large one.
The functions take the result of `pretrain scaling emergence` (`emergence.json`), a dict of plain values.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pretrain.plan.tables import amount, table
from pretrain.plan.valleys import SAME_BUDGET

MIN_BUDGETS = 3
NOISE = 3.0  # a rise within so many standard errors of its ends gets no score


def emergence_score(values: Sequence[float]) -> float:
    """The score above; 0 where all values are equal, infinite where more than half of the steps are exactly 0."""
    y = np.asarray(values, np.float64)
    rise = signed_rise(y)
    step = math.sqrt(float(np.median(np.square(np.diff(y)))))
    return 0.0 if rise == 0 else rise / step if step else math.copysign(math.inf, rise)


def signed_rise(values: Sequence[float]) -> float:
    """Largest minus smallest value, negative where the largest comes first."""
    return float(np.sign(np.argmax(values) - np.argmin(values)) * np.ptp(values))


def frontier(checkpoints: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The finished model of lowest validation loss at each budget, in order of FLOPs."""
    budgets: list[list[Mapping[str, Any]]] = []
    usable = [c for c in checkpoints if c["final"] and c["validation_loss"] is not None]
    for checkpoint in sorted(usable, key=lambda c: c["flops"]):
        if budgets and checkpoint["flops"] < (1 + SAME_BUDGET) * budgets[-1][0]["flops"]:
            budgets[-1].append(checkpoint)
        else:
            budgets.append([checkpoint])
    return [min(budget, key=lambda c: c["validation_loss"]) for budget in budgets]


def cells(result: Mapping[str, Any]) -> dict[tuple[str, int], dict[tuple[str, int], Mapping[str, Any]]]:
    """Scores by (task, size), then by (run, step)."""
    found: dict[tuple[str, int], dict] = {}
    for row in result["scores"]:
        found.setdefault((row["task"], row["size"]), {})[row["run"], row["step"]] = row
    return found


def sharpness(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The emergence score of every metric of every task and size along the frontier.

    Returns:
        rows with task, size, metric; rise (in the metric's unit, positive for the better) and its standard error;
        score, None where `note` says why: too few budgets, a rise within noise, or all in one step (infinite).
    """
    best, rows = frontier(result["checkpoints"]), []
    for (task, size), scores in cells(result).items():
        line = [scores[c["run"], c["step"]] for c in best if (c["run"], c["step"]) in scores]
        for name, metric in result["metrics"].items():
            row = {"task": task, "size": size, "metric": name, "rise": None, "error": None, "score": None}
            rows.append(row | _sharpness(line, name, 1 if metric["higher_is_better"] else -1))
    return rows


def _sharpness(line: Sequence[Mapping[str, Any]], name: str, sign: int) -> dict[str, Any]:
    if len(line) < MIN_BUDGETS:
        return {"note": f"fewer than {MIN_BUDGETS} budgets"}
    y, errors = (np.array([row[key] for row in line]) for key in (name, f"{name}_error"))
    y = sign * y
    rise, error = signed_rise(y), float(np.hypot(errors[y.argmax()], errors[y.argmin()]))
    known = {"rise": rise, "error": error}
    if abs(rise) <= NOISE * error:
        return known | {"note": "within noise"}
    score = emergence_score(y)
    return known | ({"score": score, "note": ""} if math.isfinite(score) else {"note": "all in one step"})


def scores_csv(result: Mapping[str, Any]) -> str:
    """All scores as CSV, with the checkpoint's size and compute in each row."""
    about = {(c["run"], c["step"]): c for c in result["checkpoints"]}
    rows = [{**about[row["run"], row["step"]], **row} for row in result["scores"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def emergence_table(result: Mapping[str, Any]) -> str:
    """The best model's metrics, and what changed from the smallest budget to the largest."""
    names, best = list(result["metrics"]), frontier(result["checkpoints"])
    top = best[-1] if best else max(result["checkpoints"], key=lambda c: c["flops"])
    rows = [["task", "size", "tokens", "p^L", *(name.replace("_", " ") for name in names)]]
    for (task, size), scores in cells(result).items():
        row = scores.get((top["run"], top["step"]))
        if row:
            values = [f"{row[name]:.3f}" for name in ("predicted_exact_match", *names)]
            rows.append([task, str(size), f"{row['answer_tokens']:.1f}", *values])
    loss = "" if top["validation_loss"] is None else f", validation loss {top['validation_loss']:.3f}"
    about = f"{top['run']}: {amount(top['params'])} parameters, {amount(top['flops'])} FLOPs{loss}"
    lines = [about, "", table(rows), "", "p^L: what exact match would be, were tokens right independently", ""]
    return "\n".join([*lines, *_change_lines(result, best)])


def _change_lines(result: Mapping[str, Any], best: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(best) < MIN_BUDGETS:
        return [f"no emergence scores: {len(best)} budgets are finished and {MIN_BUDGETS} are needed"]
    names = [name for pair in result["pairs"] for name in pair]
    found = {(row["task"], row["size"], row["metric"]): row for row in result["sharpness"]}
    rows = [["task", "size", *(name.replace("_", " ") for name in names)]]
    for task, size in cells(result):
        rows.append([task, str(size), *(_change(found[task, size, name]) for name in names)])
    span = f"{amount(best[0]['flops'])} to {amount(best[-1]['flops'])} FLOPs"
    return [f"rise and emergence score over the best model of each of {len(best)} budgets, {span}", "", table(rows)]


def _change(row: Mapping[str, Any]) -> str:
    if row["rise"] is None:
        return "-"
    says = {"within noise": "noise", "all in one step": "inf"}.get(row["note"]) or f"{row['score']:.1f}"
    return f"{row['rise']:+.3f} ({says})"

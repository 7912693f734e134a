"""Plans, fits and models as a person reads them, and a fitted law read back from its file."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from pretrain.core.errors import UserError, check
from pretrain.core.objective import ModelNeeds
from pretrain.core.storage import Path
from pretrain.core.trees import named_leaves
from pretrain.models.build import build_model
from pretrain.models.config import TransformerConfig
from pretrain.models.flops import count_flops
from pretrain.plan.fit import NAMES
from pretrain.plan.intervals import Resampled
from pretrain.plan.laws import FLOPS_PER_PARAMETER_TOKEN, LAWS, ParametricLaw
from pretrain.plan.shapes import count_parts

UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def amount(value: float) -> str:
    """A number to three digits with a unit: 6.79e10 is "67.9B"; beyond the units in powers of ten."""
    if not math.isfinite(value) or abs(value) >= 1e18:
        return f"{value:.3g}"
    for size, unit in UNITS:
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def table(rows: list[list[str]]) -> str:
    """Columns side by side, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def read_law(path: str) -> ParametricLaw:
    """The law of a file that `pretrain scaling fit` wrote (or of its --json output).

    Raises:
        UserError: no such file, or another kind of file.
    """
    check(Path(path).exists(), f"no such file: {path}")
    try:
        values = json.loads(Path(path).read_text())
        resampled = values.get("resampled")
        resampled = Resampled.from_json(resampled) if resampled else None
        return ParametricLaw(*(float(values[name]) for name in NAMES), path, resampled)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no fitted law; make one with `pretrain scaling fit --json`") from error


def _loss(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def plan_table(plan: Mapping[str, Any]) -> str:
    """A plan (see `Plan.to_json`) as text."""
    rows = [["law", "parameters", "tokens", "tokens/parameter", "loss", "source"]]
    for name, row in plan["laws"].items():
        source = LAWS[name].source if name in LAWS else "your own runs"
        mark = f"{name} *" if name == plan["law"] else name
        rows.append([mark, amount(row["params"]), amount(row["tokens"]), f"{row['tokens_per_param']:.1f}",
                     _loss(row["loss"]), source])  # fmt: skip
    lines = [f"budget: {plan['flops']:.3g} FLOPs", "", table(rows), ""]
    interval = plan["loss_interval"]
    whose = "with 95 % confidence in the law" if plan["law"] == "own" else "over the parametric laws"
    between = f", {interval[0]:.3f} to {interval[1]:.3f} {whose}" if interval else ""
    lines.append(
        f"* {amount(plan['params'])} parameters on {amount(plan['tokens'])} tokens: loss {_loss(plan['loss'])}{between}"
    )
    shape = plan["shape"]
    lines.append(
        f"shape: {shape['num_layers']} layers x {shape['embed_dim']}, {shape['num_heads']} heads of "
        f"{shape['head_dim']} ({shape['kv_heads'] or shape['num_heads']} kv), mlp {shape['mlp_dim']}, "
        f"vocabulary {shape['vocab_size']:,}: "
        f"{amount(shape['parameters'])} parameters"
    )
    lines.append(
        f"batch: {amount(plan['batch_tokens'])} tokens; peak learning rate {plan['learning_rate']:.2g} (AdamW)"
    )
    served, repeated, cost = plan["inference_aware"], plan["repeated_data"], plan.get("cost")
    if served:
        lines.append(f"for that much use: {amount(served['params'])} parameters on {amount(served['tokens'])} tokens "
                     f"({served['tokens_per_param']:.0f} a parameter) cost least at the same loss")  # fmt: skip
    if repeated:
        lines.append(f"with that little data: {amount(repeated['params'])} parameters, {repeated['epochs']:.1f} "
                     f"epochs, loss {_loss(repeated['loss'])} (Muennighoff et al. 2023)")  # fmt: skip
    if cost:
        lines.append(
            f"cost: {cost['days']:.1f} days, {amount(cost['chip_hours'])} chip-hours, ${cost['dollars']:,.0f}, "
            f"{amount(cost['kwh'])} kWh, {amount(cost['kg_co2'])} kg CO2 (edit with --gin.Costs...)"
        )
    return "\n".join(lines)


def fit_table(fit: Mapping[str, Any]) -> str:
    """A fit (see `measure`) as text."""
    intervals = fit["intervals"]
    between = lambda name: "{:.4g} to {:.4g}".format(*intervals[name]) if intervals else "-"  # noqa: E731
    others = [fit["projection"], fit["isoflop"]]
    rows = [["", "fit", "95 % interval", "projection", "parabolas"]]
    for name in (*NAMES, "N_opt_exponent", "D_opt_exponent"):
        rows.append(
            [name, f"{fit[name]:.5g}", between(name), *(f"{o[name]:.5g}" if name in o else "-" for o in others)]
        )
    lines = [
        f"L(N, D) = E + A / N^alpha + B / D^beta, fitted to {fit['points']} runs", "", table(rows), "",
        f"mean error {100 * fit['mean_abs_log_residual']:.2f} %; Huber objective {fit['objective']:.4g}",
    ]  # fmt: skip
    if fit["leave_out_largest_budget_error"] is not None:
        lines.append(
            f"the largest budget, predicted from the others: {100 * fit['leave_out_largest_budget_error']:.2f} % off"
        )
    for run in fit["held_out"]:
        lines.append(
            f"held out: {amount(run['params'])} parameters on {amount(run['tokens'])} tokens: measured "
            f"{run['loss']:.4f}, predicted {run['predicted']:.4f} ({100 * run['relative_error']:+.2f} %)"
        )
    if "missing" in fit["isoflop"]:
        lines.append(f"no parabolas: {fit['isoflop']['missing']}")
    return "\n".join(lines)


def describe_model(config: TransformerConfig, needs: ModelNeeds | None = None) -> dict[str, Any]:
    """Parameters, FLOPs, and every array's shape and logical axes, from shapes alone; `needs`: of an objective."""
    model = build_model(config, needs) if needs else build_model(config)
    axes = named_leaves(model.logical_axes(), is_leaf=lambda node: isinstance(node, tuple))
    arrays = {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "axes": list(axes[name]), "size": leaf.size}
        for name, leaf in named_leaves(model.shapes).items()
    }
    counts, flops = count_parts(model.shapes, config), count_flops(config, config.max_length)
    work = {"forward": flops.forward, "training": flops.training, "6N": FLOPS_PER_PARAMETER_TOKEN * counts["active"]}
    return {
        "parameters": counts, "flops_per_token": {**dataclasses.asdict(flops), **work}, "length": config.max_length,
        "arrays": arrays,
    }  # fmt: skip


def model_table(model: Mapping[str, Any]) -> str:
    """A model (see `describe_model`) as text."""
    rows = [["array", "shape", "logical axes", "parameters"]]
    for name, array in model["arrays"].items():
        rows.append([name, " x ".join(map(str, array["shape"])), ", ".join(str(axis or "-") for axis in array["axes"]),
                     f"{array['size']:,}"])  # fmt: skip
    counts, flops = model["parameters"], model["flops_per_token"]
    parts = ", ".join(
        f"{name} {counts[name]:,}" for name in ("embedding", "attention", "mlp", "norms", "heads") if counts[name]
    )
    work = ", ".join(f"{name.replace('_', ' ')} {amount(flops[name])}"
                     for name in ("attention_projections", "attention_scores", "mlp", "head"))  # fmt: skip
    return "\n".join([
        table(rows), "",
        f"parameters: {counts['total']:,} ({parts})"
        + (f", {counts['active']:,} active" if counts["active"] < counts["total"] else ""),
        f"FLOPs a token at length {model['length']:,}: training {amount(flops['training'])} "
        f"(6 N: {amount(flops['6N'])}); forward: {work}",
    ])  # fmt: skip

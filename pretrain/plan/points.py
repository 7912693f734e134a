"""Measured runs for a scaling law: parameters, tokens and final loss of each, read from a CSV file."""

import csv
import dataclasses
import io
import math

import numpy as np

from pretrain.core.errors import UserError, check
from pretrain.core.storage import Path
from pretrain.plan.laws import FLOPS_PER_PARAMETER_TOKEN

COLUMNS = "params,tokens,loss or flops,params,loss"


@dataclasses.dataclass(frozen=True)
class Points:
    """Runs of one kind of model on one kind of data; float64 arrays of one length.

    Attributes:
        params, tokens: N and D.
        loss: final loss, nats a token.
        flops: training compute; 6 N D unless it was measured.
    """

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    flops: np.ndarray

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, mask: np.ndarray) -> "Points":
        """The points at which `mask` holds."""
        return Points(self.params[mask], self.tokens[mask], self.loss[mask], self.flops[mask])


def make_points(params, loss, *, tokens=None, flops=None) -> Points:
    """Points from arrays; of tokens and flops the missing one follows from C = 6 N D.

    Raises:
        UserError: a number that is missing, not finite or not positive.
    """
    params, loss = np.asarray(params, np.float64), np.asarray(loss, np.float64)
    check(tokens is not None or flops is not None, f"points need the columns {COLUMNS}")
    if tokens is None:
        tokens = np.asarray(flops, np.float64) / (FLOPS_PER_PARAMETER_TOKEN * params)
    tokens = np.asarray(tokens, np.float64)
    flops = FLOPS_PER_PARAMETER_TOKEN * params * tokens if flops is None else np.asarray(flops, np.float64)
    for name, values in (("params", params), ("tokens", tokens), ("loss", loss), ("flops", flops)):
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        check(
            not len(wrong),
            f"point {wrong[0] + 1 if len(wrong) else 0}: {name} must be a positive number, got "
            f"{values[wrong[0]] if len(wrong) else 0:g}; leave out runs that diverged",
        )
    return Points(params, tokens, loss, flops)


def read_points(path: str) -> tuple[Points, Points | None]:
    """Points of a CSV file with a header line, and those marked 1 in a column `held_out`, if any.

    Further columns are ignored, spaces and case too.

    Raises:
        UserError: no such file, a missing column, or a value that is no positive number, with its line.
    """
    check(Path(path).exists(), f"no such file: {path}")
    text = Path(path).read_text().removeprefix("\ufeff")
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    reader.fieldnames = [(name or "").strip().lower() for name in reader.fieldnames or ()]
    names = set(reader.fieldnames)
    usable = {"params", "loss"} <= names and names & {"tokens", "flops"}
    check(bool(usable), f"{path}: the first line must name the columns {COLUMNS}; it names {', '.join(sorted(names))}")
    wanted = [name for name in ("params", "tokens", "loss", "flops") if name in names]
    columns: dict[str, list[float]] = {name: [] for name in wanted}
    is_held_out = []
    for row in reader:
        if not any((value or "").strip() for value in row.values() if isinstance(value, str)):
            continue
        is_held_out.append((row.get("held_out") or "").strip() == "1")
        for name in wanted:
            columns[name].append(_number(row[name], f"{path}, line {reader.line_num}: {name}"))
    check(bool(columns["loss"]), f"{path} holds no points, only a header")
    points = make_points(columns["params"], columns["loss"], tokens=columns.get("tokens"), flops=columns.get("flops"))
    held = np.array(is_held_out)
    return points.where(~held), points.where(held) if held.any() else None


def _number(text: str | None, where: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise UserError(f"{where} must be a number, got {text!r}") from None
    check(
        math.isfinite(value) and value > 0,
        f"{where} must be a positive number, got {text}; leave out runs that diverged",
    )
    return value

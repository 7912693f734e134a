"""IsoFLOP valleys: for each budget a parabola of loss over log N, and the power law through their lowest points.

Hoffmann et al. 2022, section 3.2. The valley of a law with different exponents is not a parabola, so the exponent found
this way is off even without noise when sizes lie lopsided about the best one; compare it with the parametric fit's.
"""

import dataclasses

import numpy as np

from pretrain.core.errors import UserError, check
from pretrain.plan.laws import FLOPS_PER_PARAMETER_TOKEN
from pretrain.plan.points import Points

SAME_BUDGET = 0.1  # runs whose FLOPs differ by less than this share are on one curve
MIN_SIZES = MIN_BUDGETS = 3


@dataclasses.dataclass(frozen=True)
class Valley:
    """One budget's parabola: loss = coefficients . (log N ** 2, log N, 1).

    Attributes:
        flops: the budget.
        params, loss: the lowest point.
        points: the runs it goes through.
        coefficients: of the parabola.
    """

    flops: float
    params: float
    loss: float
    points: Points
    coefficients: np.ndarray

    @property
    def tokens(self) -> float:
        """D at the lowest point."""
        return self.flops / (FLOPS_PER_PARAMETER_TOKEN * self.params)


@dataclasses.dataclass(frozen=True)
class Valleys:
    """All budgets' parabolas, and N_opt ~ C^params_exponent through their lowest points."""

    valleys: tuple[Valley, ...]
    params_exponent: float
    coefficient: float

    @property
    def tokens_exponent(self) -> float:
        """b in D_opt ~ C^b."""
        return 1 - self.params_exponent

    def to_json(self) -> dict:
        """The result as plain values."""
        budgets = [{"flops": v.flops, "params": v.params, "tokens": v.tokens, "loss": v.loss} for v in self.valleys]
        exponents = {"N_opt_exponent": self.params_exponent, "D_opt_exponent": self.tokens_exponent}
        return {**exponents, "budgets": budgets}


def budgets_of(points: Points) -> list[np.ndarray]:
    """Indices of the points on each IsoFLOP curve, by rising budget."""
    order = np.argsort(points.flops, kind="stable")
    jumps = np.flatnonzero(np.diff(np.log(points.flops[order])) > np.log1p(SAME_BUDGET)) + 1
    return np.split(order, jumps)


def fit_valleys(points: Points) -> Valleys:
    """Parabolas through the points of each budget.

    Raises:
        UserError: too few budgets with enough sizes, or a budget whose sizes all lie on one side of the best.
    """
    curves = [group for group in budgets_of(points) if len(np.unique(points.params[group])) >= MIN_SIZES]
    check(
        len(curves) >= MIN_BUDGETS,
        f"{len(curves)} budget(s) have {MIN_SIZES} or more model sizes; parabolas need {MIN_BUDGETS} such budgets: "
        "train more sizes at equal FLOPs, or use the parametric fit alone",
    )
    valleys = tuple(_valley(points.where(group)) for group in curves)
    log_c, log_n = np.log([v.flops for v in valleys]), np.log([v.params for v in valleys])
    slope, intercept = np.polyfit(log_c, log_n, 1)
    return Valleys(valleys, float(slope), float(np.exp(intercept)))


def _valley(points: Points) -> Valley:
    flops = float(np.exp(np.log(points.flops).mean()))
    log_n = np.log(points.params)
    coefficients = np.polyfit(log_n, points.loss, 2)
    lowest = -coefficients[1] / (2 * coefficients[0])
    if coefficients[0] <= 0 or not log_n.min() - np.log(2) <= lowest <= log_n.max() + np.log(2):
        side = "larger" if points.loss[np.argmax(log_n)] < points.loss[np.argmin(log_n)] else "smaller"
        raise UserError(
            f"the runs of {flops:.3g} FLOPs do not enclose their best size (parabola's lowest point outside their "
            f"range): train {side} models at this budget"
        )
    loss = float(np.polyval(coefficients, lowest))
    return Valley(flops, float(np.exp(lowest)), loss, points, coefficients)

"""Fits L(N, D) = E + A / N^alpha + B / D^beta to measured losses, with intervals.

Three ways, which should agree: the parametric fit of Hoffmann et al. 2022 (section 3.3: Huber loss of log L, L-BFGS
from a grid of starts; Besiroglu et al. 2024 for what goes wrong without convergence), variable projection (alpha and
beta searched, E, A and B solved as linear least squares), and parabolas through valleys of equal compute (section 3.2).
Parabolas are biased even on exact data when the grid of sizes is lopsided, hence the other two.
"""

import dataclasses
import itertools

import numpy as np
from scipy import optimize

from pretrain.core.errors import UserError, check
from pretrain.plan.intervals import Resampled, expanded_percentiles, smoothed_errors
from pretrain.plan.laws import ParametricLaw
from pretrain.plan.points import Points

HUBER_DELTA = 1e-3
# Grid of starts in (log A, log B, log E, alpha, beta).
STARTS = ((0.0, 5.0, 10.0, 15.0, 20.0), (0.0, 5.0, 10.0, 15.0, 20.0), (-1.0, -0.5, 0.0, 0.5, 1.0),
          (0.0, 0.25, 0.5, 1.0, 1.5), (0.0, 0.25, 0.5, 1.0, 1.5))  # fmt: skip
REFINED = 8  # starts that L-BFGS goes on from: the best of the grid
NAMES = ("E", "A", "B", "alpha", "beta")
MIN_POINTS = 6  # one more than there are unknowns
STEPS = 100  # of `refine`, which needs about 6
MANY = 10**6  # residuals at once
LARGE = 700.0  # logarithm of about the largest float64


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: the parameters, with the laws fitted to bootstrap samples.
        objective: sum over points of the Huber loss of log L's residual.
        intervals: {parameter or exponent: (low, high)} at `confidence`, from the bootstrap.
        residuals: log L measured minus predicted, one a point.
    """

    law: ParametricLaw
    objective: float
    intervals: dict[str, tuple[float, float]]
    residuals: np.ndarray

    def to_json(self) -> dict:
        """The result as plain values."""
        law = self.law
        return {
            **{name: getattr(law, name) for name in NAMES},
            "objective": self.objective,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
            "N_opt_exponent": law.params_exponent,
            "D_opt_exponent": law.tokens_exponent,
        }


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """log N and log D of points about their means, where the unknowns hang together least.

    The unknowns are theta = (log A, log B, log E, alpha, beta) in arrays [fits, 5], with A and B those of the means.
    """

    log_n: np.ndarray
    log_d: np.ndarray
    centre: tuple[float, float]

    @classmethod
    def of(cls, points: Points) -> "Coordinates":
        """Of points."""
        log_n, log_d = np.log(points.params), np.log(points.tokens)
        return cls(log_n - log_n.mean(), log_d - log_d.mean(), (log_n.mean(), log_d.mean()))

    def theta(self, starts: np.ndarray) -> np.ndarray:
        """theta of starts whose A and B are those of the law."""
        starts = starts.copy()
        starts[:, :2] -= starts[:, 3:] * self.centre
        return starts

    def values(self, theta: np.ndarray) -> np.ndarray:
        """The law's E, A, B, alpha, beta, [fits, 5]."""
        log_ab = theta[:, :2] + theta[:, 3:] * self.centre
        with np.errstate(over="ignore"):
            return np.concatenate([np.exp(theta[:, 2:3]), np.exp(log_ab), theta[:, 3:]], 1)

    def terms(self, theta: np.ndarray) -> np.ndarray:
        """The three addends of the loss, [3, fits, points]."""
        log_a, log_b, log_e, alpha, beta = (theta[:, i, None] for i in range(5))
        logs = np.stack(np.broadcast_arrays(log_a - alpha * self.log_n, log_b - beta * self.log_d, log_e))
        return np.exp(np.clip(logs, -LARGE, LARGE))

    def predict(self, theta: np.ndarray) -> np.ndarray:
        """log L, [fits, points]."""
        return np.log(self.terms(theta).sum(0))

    def jacobian(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """log L [fits, points] and its derivatives [fits, points, 5]."""
        terms = self.terms(theta)
        total = terms.sum(0)
        a, b, e = terms / total
        return np.log(total), np.stack([a, b, e, -a * self.log_n, -b * self.log_d], -1)


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """r^2 / 2 up to delta, then delta (|r| - delta / 2)."""
    size = np.abs(residuals)
    return np.where(size <= delta, residuals**2 / 2, delta * (size - delta / 2))


def fit_law(
    points: Points, *, delta: float = HUBER_DELTA, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Fit:
    """Fits the parametric law to points.

    Args:
        points: at least `MIN_POINTS`, of at least three values of N and of D.
        delta: where the Huber loss turns from square to linear.
        resamples: bootstrap samples for the intervals; 0 for none.
        confidence: of the intervals.
        seed: of the bootstrap.

    Raises:
        UserError: too few points, or all of one size.
    """
    _check_enough(points)
    x, y = Coordinates.of(points), np.log(points.loss)
    theta = _minimise(x, y, delta)
    fitted = x.predict(theta)
    residuals = y - fitted[0]
    law, intervals = _law(x.values(theta)[0]), {}
    if resamples:
        errors = smoothed_errors(residuals, len(NAMES), resamples, np.random.default_rng(seed))
        resampled = Resampled(_refit(x, theta, fitted + errors, delta), len(points) - len(NAMES))
        law, intervals = dataclasses.replace(law, resampled=resampled), _intervals(resampled, confidence)
    return Fit(law, float(huber(residuals, delta).sum()), intervals, residuals)


def _check_enough(points: Points) -> None:
    count = len(points)
    check(
        count >= MIN_POINTS,
        f"{count} point(s) given, but the law has 5 unknowns: give at least {MIN_POINTS} runs of different sizes",
    )
    for name, values in (("params", points.params), ("tokens", points.tokens)):
        check(
            len(np.unique(values)) >= 3,
            f"all points have {len(np.unique(values))} value(s) of {name}: the law needs at least 3 to see how loss "
            "falls with it",
        )


def _law(values: np.ndarray) -> ParametricLaw:
    *_, alpha, beta = values
    if not (alpha > 0 and beta > 0 and np.isfinite(values).all()):
        raise UserError(
            f"the points follow no law of this form (alpha {alpha:.3g}, beta {beta:.3g}): loss must fall as params and "
            "tokens grow; look for runs that diverged or were cut short"
        )
    return ParametricLaw(*values.tolist())


def _minimise(x: Coordinates, y: np.ndarray, delta: float) -> np.ndarray:
    """theta [1, 5]: L-BFGS from the best starts of the grid, then the last digits."""

    def objective(theta):
        predicted, jacobian = x.jacobian(theta[None])
        residuals = y - predicted[0]
        slope = -np.clip(residuals, -delta, delta)
        return huber(residuals, delta).sum() / delta, slope @ jacobian[0] / delta

    starts = x.theta(np.array(list(itertools.product(*STARTS))))
    parts = np.array_split(starts, -(-len(starts) * len(y) // MANY))
    values = np.concatenate([huber(y - x.predict(part), delta).sum(1) for part in parts])
    best = starts[np.argsort(values, kind="stable")[:REFINED]]
    options = {"maxiter": 40}
    found = [optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x for start in best]
    polished = refine(np.array(found), x, y, delta)
    return polished[None, np.argmin(huber(y - x.predict(polished), delta).sum(1))]


def refine(theta: np.ndarray, x: Coordinates, y: np.ndarray, delta: float) -> np.ndarray:
    """Many fits at once to their last digits, by Newton's steps that only go down.

    Huber's Hessian knows only points within delta; it is damped by that of iterated least squares (Holland and Welsch
    1977), which knows all of them and alone would be safe and slow.

    Args:
        theta: starts, [fits, 5].
        x: of the points.
        y: log L, [points] or [fits, points].
        delta: Huber's.
    """
    theta, y = theta.copy(), np.broadcast_to(y, (len(theta), y.shape[-1]))
    damping, at_work = np.ones(len(theta)), np.arange(len(theta))
    cost = huber(y - x.predict(theta), delta).sum(1)
    for _ in range(STEPS):
        predicted, jacobian = x.jacobian(theta[at_work])
        residuals = y[at_work] - predicted
        weights = np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
        safe = _products(jacobian, weights)
        hessian = _products(jacobian, weights == 1) + damping[at_work, None, None] * safe
        ridge = (1e-12 * np.trace(hessian, axis1=1, axis2=2)[:, None, None] + 1e-300) * np.eye(5)
        gradient = np.einsum("fpi,fp->fi", jacobian, weights * residuals)
        proposed = theta[at_work] + np.linalg.solve(hessian + ridge, gradient[..., None])[..., 0]
        value = huber(y[at_work] - x.predict(proposed), delta).sum(1)
        better = value < cost[at_work]
        done = np.where(better, value >= cost[at_work] * (1 - 1e-12), damping[at_work] >= 1e6)
        theta[at_work[better]], cost[at_work[better]] = proposed[better], value[better]
        damping[at_work] *= np.where(better, 0.2, 8.0)
        at_work = at_work[~done]
        if not len(at_work):
            break
    return theta


def _products(jacobian: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """J' W J, [fits, 5, 5]."""
    return np.swapaxes(jacobian * weights[..., None], 1, 2) @ jacobian


def _refit(x: Coordinates, theta: np.ndarray, y: np.ndarray, delta: float) -> np.ndarray:
    """E, A, B, alpha, beta of fits to each row of y, [fits, 5]."""
    parts = np.array_split(y, -(-y.size // MANY))
    return x.values(np.concatenate([refine(np.repeat(theta, len(part), 0), x, part, delta) for part in parts]))


def _intervals(resampled: Resampled, confidence: float) -> dict[str, tuple[float, float]]:
    """Of each parameter and both exponents."""
    *_, alpha, beta = resampled.values.T
    exponents = {"N_opt_exponent": beta / (alpha + beta), "D_opt_exponent": alpha / (alpha + beta)}
    columns = {**dict(zip(NAMES, resampled.values.T, strict=True)), **exponents}
    return {name: expanded_percentiles(column, confidence, resampled.freedom) for name, column in columns.items()}


def fit_by_projection(points: Points) -> ParametricLaw:
    """The law by variable projection: for given exponents E, A and B are linear least squares (Golub and Pereyra 1973).

    Relative residuals are squared, so it agrees with the parametric fit on clean data and is not robust.
    """
    _check_enough(points)
    n, d, loss = points.params / points.params.min(), points.tokens / points.tokens.min(), points.loss

    def solve(exponents):
        design = np.stack([np.ones_like(n), n ** -exponents[0], d ** -exponents[1]], 1) / loss[:, None]
        coefficients, *_ = np.linalg.lstsq(design, np.ones_like(loss), rcond=None)
        return coefficients, 1 - design @ coefficients

    starts = itertools.product((0.15, 0.3, 0.6), repeat=2)
    found = [
        optimize.least_squares(lambda e: solve(e)[1], start, bounds=(1e-3, 3), xtol=1e-15, ftol=1e-15, gtol=1e-15)
        for start in starts
    ]
    alpha, beta = min(found, key=lambda result: result.cost).x
    (e, a, b), _ = solve((alpha, beta))
    check(a > 0 and b > 0, "the points follow no law of this form: loss must fall as params and tokens grow")
    return ParametricLaw(
        float(e), float(a * points.params.min() ** alpha), float(b * points.tokens.min() ** beta), float(alpha),
        float(beta), "variable projection",
    )  # fmt: skip


def held_out_error(points: Points, delta: float = HUBER_DELTA) -> float | None:
    """Mean |log L error| on the points of the largest budget, by a fit to all others; None with too few left."""
    largest = points.flops >= points.flops.max() * 0.9
    try:
        law = fit_law(points.where(~largest), delta=delta, resamples=0).law
    except UserError:
        return None
    held = points.where(largest)
    return float(np.abs(np.log(law.loss(held.params, held.tokens) / held.loss)).mean())

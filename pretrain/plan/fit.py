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
from scipy.special import logsumexp

from pretrain.core.errors import UserError, check
from pretrain.plan.laws import ParametricLaw
from pretrain.plan.points import Points

HUBER_DELTA = 1e-3
# Grid of starts in (log A, log B, log E, alpha, beta).
STARTS = ((0.0, 5.0, 10.0, 15.0, 20.0), (0.0, 5.0, 10.0, 15.0, 20.0), (-1.0, -0.5, 0.0, 0.5, 1.0),
          (0.0, 0.25, 0.5, 1.0, 1.5), (0.0, 0.25, 0.5, 1.0, 1.5))  # fmt: skip
REFINED = 8  # starts that L-BFGS goes on from: the best of the grid
NAMES = ("E", "A", "B", "alpha", "beta")
MIN_POINTS = 6  # one more than there are unknowns


@dataclasses.dataclass(frozen=True)
class Fit:
    """A fitted law.

    Attributes:
        law: the parameters.
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


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """r^2 / 2 up to delta, then delta (|r| - delta / 2)."""
    size = np.abs(residuals)
    return np.where(size <= delta, residuals**2 / 2, delta * (size - delta / 2))


def fit_law(
    points: Points, *, delta: float = HUBER_DELTA, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Fit:
    """Fits the parametric law to points.

    Args:
        points: at least `MIN_POINTS`, of at least two values of N and of D.
        delta: where the Huber loss turns from square to linear.
        resamples: bootstrap samples for the intervals; 0 for none.
        confidence: of the intervals.
        seed: of the bootstrap.

    Raises:
        UserError: too few points, or all of one size.
    """
    _check_enough(points)
    x, y = (np.log(points.params), np.log(points.tokens)), np.log(points.loss)
    theta = _minimise(x, y, delta)
    residuals = y - _predict(theta[None], x)[0]
    intervals = _bootstrap(theta, residuals, x, delta, resamples, confidence, seed) if resamples else {}
    return Fit(_law(theta), float(huber(residuals, delta).sum()), intervals, residuals)


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


def _law(theta: np.ndarray) -> ParametricLaw:
    log_a, log_b, log_e, alpha, beta = theta
    values = np.exp([log_e, log_a, log_b])
    if not (alpha > 0 and beta > 0 and np.isfinite(values).all()):
        raise UserError(
            f"the points follow no law of this form (alpha {alpha:.3g}, beta {beta:.3g}): loss must fall as params and "
            "tokens grow; look for runs that diverged or were cut short"
        )
    return ParametricLaw(*(float(value) for value in (*values, alpha, beta)))


def _terms(theta: np.ndarray, x: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Logarithms of the three addends, [fits, points, 3], for parameters [fits, 5]."""
    log_a, log_b, log_e, alpha, beta = (theta[:, i, None] for i in range(5))
    log_n, log_d = x
    return np.stack(np.broadcast_arrays(log_a - alpha * log_n, log_b - beta * log_d, log_e + 0 * log_n), -1)


def _predict(theta: np.ndarray, x) -> np.ndarray:
    return logsumexp(_terms(theta, x), axis=-1)


def _jacobian(theta: np.ndarray, x) -> tuple[np.ndarray, np.ndarray]:
    """Predicted log L [fits, points] and its derivatives [fits, points, 5]."""
    terms = _terms(theta, x)
    predicted = logsumexp(terms, axis=-1)
    share = np.exp(terms - predicted[..., None])
    columns = [share[..., 0], share[..., 1], share[..., 2], -share[..., 0] * x[0], -share[..., 1] * x[1]]
    return predicted, np.stack(columns, -1)


def _minimise(x, y: np.ndarray, delta: float) -> np.ndarray:
    """L-BFGS from the best starts of the grid, then polished."""

    def objective(theta):
        predicted, jacobian = _jacobian(theta[None], x)
        residuals = y - predicted[0]
        slope = -np.clip(residuals, -delta, delta)
        return huber(residuals, delta).sum() / delta, slope @ jacobian[0] / delta

    starts = np.array(list(itertools.product(*STARTS)))
    parts = np.array_split(starts, -(-len(starts) * len(y) // 10**6))
    values = np.concatenate([huber(y - _predict(part, x), delta).sum(1) for part in parts])
    best = starts[np.argsort(values, kind="stable")[:REFINED]]
    options = {"maxiter": 300, "maxfun": 600, "ftol": 1e-14, "gtol": 1e-10}
    found = [optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x for start in best]
    polished = refine(np.array(found), x, np.repeat(y[None], len(found), 0), delta, iterations=100)
    return polished[np.argmin(huber(y - _predict(polished, x), delta).sum(1))]


def refine(theta: np.ndarray, x, y: np.ndarray, delta: float, iterations: int) -> np.ndarray:
    """The last digits of many fits at once: Levenberg-Marquardt steps with Huber's weights that only go down.

    Args:
        theta: starts, [fits, 5].
        x: (log N, log D), each [points].
        y: log L, [fits, points].
        delta: Huber's.
        iterations: of all fits.
    """
    theta, damping = theta.copy(), np.full(len(theta), 1e-3)

    def cost(candidate):
        return huber(y - _predict(candidate, x), delta).sum(1)

    current = cost(theta)
    for _ in range(iterations):
        predicted, jacobian = _jacobian(theta, x)
        residuals = y - predicted
        weights = np.minimum(1.0, delta / np.maximum(np.abs(residuals), 1e-300))
        weighted = jacobian * weights[..., None]
        hessian = np.einsum("fpi,fpj->fij", weighted, jacobian)
        gradient = np.einsum("fpi,fp->fi", weighted, residuals)
        diagonal = np.einsum("fii->fi", hessian)
        ridge = damping[:, None] * diagonal + 1e-14 * diagonal.max(1, keepdims=True) + 1e-300
        step = np.linalg.solve(hessian + np.einsum("fi,ij->fij", ridge, np.eye(5)), gradient[..., None])[..., 0]
        proposed = theta + step
        value = cost(proposed)
        better = value < current
        theta = np.where(better[:, None], proposed, theta)
        current = np.where(better, value, current)
        damping = np.clip(np.where(better, damping / 5, damping * 10), 1e-15, 1e6)
    return theta


def _bootstrap(theta, residuals, x, delta, resamples, confidence, seed) -> dict[str, tuple[float, float]]:
    """Intervals from refits to the fitted curve plus resampled residuals, widened for the unknowns already spent.

    Sizes of runs are chosen, not drawn, so residuals are resampled and not points.
    """
    rng = np.random.default_rng(seed)
    count = len(residuals)
    spread = (residuals - residuals.mean()) * np.sqrt(count / (count - len(theta)))
    fitted = _predict(theta[None], x)[0]
    samples = []
    for part in np.array_split(np.arange(resamples), max(1, resamples * count // 200_000)):
        y = fitted + rng.choice(spread, (len(part), count))
        samples.append(refine(np.repeat(theta[None], len(part), 0), x, y, delta, iterations=30))
    values = np.concatenate(samples)
    columns = {
        "E": np.exp(values[:, 2]), "A": np.exp(values[:, 0]), "B": np.exp(values[:, 1]),
        "alpha": values[:, 3], "beta": values[:, 4],
        "N_opt_exponent": values[:, 4] / (values[:, 3] + values[:, 4]),
        "D_opt_exponent": values[:, 3] / (values[:, 3] + values[:, 4]),
    }  # fmt: skip
    tail = (1 - confidence) / 2
    return {name: tuple(np.quantile(column, [tail, 1 - tail]).tolist()) for name, column in columns.items()}


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

"""Bootstrap intervals for a robust curve fit to a few chosen points.

Sizes of runs are chosen, not drawn, so residuals are resampled and not points. Two things make the plain percentile
interval too narrow here, and each has its known cure:

- A Huber loss that is linear beyond a delta far below the noise is almost the sum of absolute residuals. Such a fit
  passes through as many points as it has unknowns; resampled residuals repeat these zeros, and the refits scatter too
  little. Residuals are smoothed by a kernel (De Angelis, Hall and Young 1993, "Analytical and bootstrap
  approximations to estimator distributions in L1 regression"), as wide as Silverman's rule says (1986, equation 3.31).
- Few points: residuals are widened for the unknowns already spent, and percentiles are those of Student's t (the
  expanded percentile interval of Hesterberg 2015, "What teachers should know about the bootstrap", section 4.3).
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Resampled:
    """A law's parameters refitted to bootstrap samples.

    Attributes:
        values: E, A, B, alpha, beta of each refit, [resamples, 5].
        freedom: points less unknowns.
    """

    values: np.ndarray
    freedom: int

    def to_json(self, most: int = 200) -> dict:
        """The first `most` refits as plain values."""
        rows = [[float(f"{value:.6g}") for value in row] for row in self.values[:most]]
        return {"freedom": self.freedom, "values": rows}

    @classmethod
    def from_json(cls, values: dict) -> "Resampled":
        """What `to_json` gave."""
        return cls(np.array(values["values"], float).reshape(-1, 5), int(values["freedom"]))


def smoothed_errors(residuals: np.ndarray, unknowns: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Errors to add to the fitted curve, [resamples, points].

    Args:
        residuals: of the fit, [points].
        unknowns: that were fitted.
        resamples: how many samples.
        rng: of the draws.
    """
    count = len(residuals)
    spread = (residuals - residuals.mean()) * np.sqrt(count / (count - unknowns))
    low, high = np.quantile(spread, [0.25, 0.75])
    bandwidth = 0.9 * min(spread.std(), (high - low) / 1.349) * count**-0.2
    shape = (resamples, count)
    return rng.choice(spread, shape) + bandwidth * rng.standard_normal(shape)


def expanded_percentiles(values: np.ndarray, confidence: float, freedom: int) -> tuple[float, float]:
    """The percentile interval of bootstrap values, [resamples], whose tails are Student's with so many degrees."""
    from scipy import stats  # here, as in `core.sound`: it takes long to import

    tail = stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, freedom))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)

"""Whether the 95 % intervals of a scaling fit hold the truth 95 times in 100: many noisy draws of a known law.

    python benchmarks/scaling_coverage.py [--draws=500] [--resamples=200] [--noise=0.003] [--seed=0]

Each draw is a grid of runs about their best sizes (5 budgets x 7 sizes) with log-normal noise. Prints for a parameter
how often its interval held the truth, and the two-sided binomial test against 95 %; exit code 1 when one fails at the
level .05 divided by the number of parameters. Several seconds a draw.
"""

import argparse
import sys

import numpy as np
from scipy import stats

from pretrain.core.console import Progress
from pretrain.plan.fit import NAMES, fit_law
from pretrain.plan.laws import ParametricLaw
from pretrain.plan.points import Points, make_points

LAW = ParametricLaw(1.8, 480.0, 2000.0, 0.35, 0.36)
TRUTH = {
    **{name: getattr(LAW, name) for name in NAMES},
    "N_opt_exponent": LAW.params_exponent,
    "D_opt_exponent": LAW.tokens_exponent,
}


def draw(rng: np.random.Generator, noise: float) -> Points:
    """One noisy sweep."""
    flops = np.repeat(np.geomspace(1e18, 1e21, 5), 7)
    params = np.array([LAW.optimum(budget).params for budget in flops]) * np.tile(np.geomspace(0.2, 5, 7), 5)
    tokens = flops / (6 * params)
    return make_points(params, LAW.loss(params, tokens) * np.exp(rng.normal(0, noise, len(flops))), tokens=tokens)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--noise", type=float, default=0.003)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng, held = np.random.default_rng(arguments.seed), dict.fromkeys(TRUTH, 0)
    with Progress(arguments.draws, "coverage", "draw") as progress:
        for number in range(arguments.draws):
            fit = fit_law(draw(rng, arguments.noise), resamples=arguments.resamples, seed=number)
            for name, (low, high) in fit.intervals.items():
                held[name] += low <= TRUTH[name] <= high
            progress.update()
    failed = False
    for name, count in held.items():
        p_value = stats.binomtest(count, arguments.draws, 0.95).pvalue
        failed |= p_value < 0.05 / len(held)
        print(f"{name:15s} {100 * count / arguments.draws:5.1f} % of {arguments.draws}, p = {p_value:.3f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

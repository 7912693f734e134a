"""Whether the 95 % intervals of a scaling fit hold the truth 95 times in 100: many noisy draws of a known law.

    python benchmarks/scaling_coverage.py [--draws=500] [--resamples=400] [--noise=0.003 0.01] [--budgets=5] [--sizes=7]

Each draw is a grid of runs about their best sizes with log-normal noise, and with Student's t of 3 degrees (of the same
standard deviation) instead. Prints for a parameter how often its interval held the truth, and the two-sided binomial
test against 95 %; exit code 1 when one fails at the level .05 over the number of parameters. About 3 draws a second.
"""

import argparse
import os
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: threads only cost time on 5 x 5 matrices

import numpy as np
from scipy import stats

from pretrain.core.console import Progress
from pretrain.core.errors import exit_code
from pretrain.plan.fit import NAMES, fit_law
from pretrain.plan.laws import ParametricLaw
from pretrain.plan.points import Points, make_points

LAW = ParametricLaw(1.8, 480.0, 2000.0, 0.35, 0.36)
TRUTH = {
    **{name: getattr(LAW, name) for name in NAMES},
    "N_opt_exponent": LAW.params_exponent,
    "D_opt_exponent": LAW.tokens_exponent,
}
ERRORS = {
    "Gaussian": lambda rng, size: rng.standard_normal(size),
    "Student t, 3 degrees": lambda rng, size: rng.standard_t(3, size) / np.sqrt(3),
}


def draw(rng: np.random.Generator, noise: float, kind: str = "Gaussian", budgets: int = 5, sizes: int = 7) -> Points:
    """One noisy sweep."""
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    best = np.array([LAW.optimum(budget).params for budget in flops])
    params = best * np.tile(np.geomspace(0.2, 5, sizes), budgets)
    tokens = flops / (6 * params)
    errors = noise * ERRORS[kind](rng, len(flops))
    return make_points(params, LAW.loss(params, tokens) * np.exp(errors), tokens=tokens)


def coverage(arguments: argparse.Namespace, noise: float, kind: str) -> dict[str, int]:
    """How many intervals of each parameter held its truth."""
    rng, held = np.random.default_rng(arguments.seed), dict.fromkeys(TRUTH, 0)
    with Progress(arguments.draws, f"{kind}, {noise:g}", "draw") as progress:
        for number in range(arguments.draws):
            points = draw(rng, noise, kind, arguments.budgets, arguments.sizes)
            fit = fit_law(points, resamples=arguments.resamples, seed=number)
            for name, (low, high) in fit.intervals.items():
                held[name] += low <= TRUTH[name] <= high
            progress.update()
    return held


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=400)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.003, 0.01])
    parser.add_argument("--budgets", type=int, default=5)
    parser.add_argument("--sizes", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    failed = False
    for kind in ERRORS:
        for noise in arguments.noise:
            print(f"{kind} noise of {100 * noise:g} %, {arguments.budgets} x {arguments.sizes} runs")
            for name, count in coverage(arguments, noise, kind).items():
                p_value = stats.binomtest(count, arguments.draws, 0.95).pvalue
                failed |= p_value < 0.05 / len(TRUTH)
                print(
                    f"  {name:15s} {100 * count / arguments.draws:5.1f} % of {arguments.draws}, p = {p_value:.3f}",
                    flush=True,
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(exit_code(main, "scaling_coverage"))

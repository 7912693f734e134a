"""Loss and gradient-norm curves of clean runs: made-up ones, with the noise of real ones and worse, and recorded ones.

python tests/loss_curves.py 5000 4000                    # runs, steps each: false alarms among 2e7 made-up steps
python tests/loss_curves.py 20 RUN/metrics.jsonl ...     # as recorded, and 20 times each with the noise drawn anew
"""

import sys

import numpy as np

from pretrain.train.metrics import read_metrics
from pretrain.train.spikes import NOTHING, SIGNALS, Detector, fresh, observe


def clean_curves(runs: int, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Losses and gradient norms, [runs, steps] each.

    The loss falls by a power law from warm-up on, rests on plateaus, and falls again while the learning rate decays.
    Its noise has three parts: heavy-tailed from step to step (Student's t, 5 degrees of freedom; that of measured runs
    is normal or lighter), a slow wander (autocorrelation 0.95), and a size that changes along the run. The log gradient
    norm has tails of 4 degrees of freedom, an autocorrelation of 0.6 and a slow trend.
    """
    rng = np.random.default_rng(seed)
    draw = lambda low, high: np.exp(rng.uniform(np.log(low), np.log(high), (runs, 1)))  # noqa: E731
    t = np.arange(steps)
    start, floor, power = draw(6, 11), draw(1.5, 3.5), draw(0.2, 0.6)
    warmup = draw(10, 200)
    level = floor + (start - floor) * (1 + t / warmup) ** -power
    plateau = (t // rng.integers(200, 900, (runs, 1))) % 3 == 1
    falls = np.where(plateau, 0, np.diff(level, axis=1, prepend=level[:, :1]))
    level = level[:, :1] + np.cumsum(falls, axis=1)
    decay = np.clip((t - 0.8 * steps) / (0.2 * steps), 0, 1) * (rng.random((runs, 1)) < 0.5)
    level = level * (1 - 0.08 * decay)
    size = draw(0.004, 0.06) * (1 + 0.5 * np.sin(t / draw(100, 1000)))
    white, slow = rng.standard_t(5, (runs, steps)), _wander(rng, runs, steps, 0.95)
    loss = level * (1 + size * (white / 1.29 + 0.5 * slow))
    size = draw(0.05, 0.3)
    noise = 0.7 * rng.standard_t(4, (runs, steps)) / 1.41 + 0.7 * _wander(rng, runs, steps, 0.6)
    log_norm = np.log(draw(0.2, 3)) + 1.5 * np.exp(-t / warmup) + rng.uniform(0, 0.5, (runs, 1)) * t / steps
    return loss, np.exp(log_norm + size * noise)


def _wander(rng: np.random.Generator, runs: int, steps: int, correlation: float) -> np.ndarray:
    """Normal noise of variance 1 with that correlation from step to step."""
    drawn = rng.standard_normal((runs, steps)) * np.sqrt(1 - correlation**2)
    drawn[:, 0] /= np.sqrt(1 - correlation**2)
    for step in range(1, steps):
        drawn[:, step] += correlation * drawn[:, step - 1]
    return drawn


def recorded(path: str) -> np.ndarray:
    """The logged steps of a run, their losses and gradient norms, [3, rows]."""
    rows = [row for row in read_metrics(path) if row.get("loss") is not None and row.get("grad_norm") is not None]
    return np.array([[row[name] for row in rows] for name in ("step", "loss", "grad_norm")], float)


def redrawn(rows: np.ndarray, copies: int, seed: int, near: int = 25) -> list[np.ndarray]:
    """Losses and gradient norms of every step, [copies, steps] each, from those of the logged ones.

    The level between logged steps is that of a running median over 9 of them; each step's noise is that of a logged one
    at most `near` rows away, drawn with replacement, the same one for loss and gradient norm, as these spike together.
    """
    rng, (logged, *signals) = np.random.default_rng(seed), rows
    steps = np.arange(logged[0], logged[-1] + 1)
    nearest = np.searchsorted(logged, steps).clip(0, len(logged) - 1)
    drawn = (nearest + rng.integers(-near, near + 1, (copies, len(steps)))).clip(0, len(logged) - 1)
    curves = []
    for values in np.log(signals):
        around = np.lib.stride_tricks.sliding_window_view(np.pad(values, 4, mode="reflect"), 9)
        level = np.median(around, axis=1)
        curves.append(np.exp(np.interp(steps, logged, level) + (values - level)[drawn]))
    return curves


def findings(config: Detector, loss: np.ndarray, norm: np.ndarray) -> list[tuple[int, int, str, int]]:
    """What the detector finds: run, step, signal, steps ago that it began."""
    state, found = fresh(config, loss.shape[:1]), []
    for step in range(loss.shape[1]):
        state, finding = observe(config, state, loss[:, step], norm[:, step])
        for run in np.flatnonzero(finding.signal_R != NOTHING).tolist():
            found.append((run, step, SIGNALS[finding.signal_R[run]], int(finding.began_R[run])))
    return found


def false_alarms(curves: list[list[np.ndarray]]) -> str:
    """What the detector finds in curves of clean runs, for people."""
    alarms, steps = [found for each in curves for found in findings(Detector(), *each)], sum(c[0].size for c in curves)
    return f"{len(alarms)} false alarms in {steps:.4g} steps of {sum(len(c[0]) for c in curves)} runs: {alarms[:20]}"


if __name__ == "__main__":
    number, *more = sys.argv[1:]
    if more[0].isdigit():
        print(
            "made up:", false_alarms([clean_curves(500, int(more[0]), seed) for seed in range(-(-int(number) // 500))])
        )
    else:
        files = [recorded(path) for path in more]
        whole = [[rows[1:2], rows[2:]] for rows in files if np.all(np.diff(rows[0]) == 1)]
        print("as recorded, every step logged:", false_alarms(whole), flush=True)
        noisy = [redrawn(rows, int(number), seed) for seed, rows in enumerate(files)]
        print("noise drawn anew:", false_alarms(noisy))

"""Loss and gradient-norm curves of made-up clean runs, with the noise of real ones and worse, and planted spikes.

python tests/loss_curves.py 5000 4000     # runs, steps each: false alarms among 2e7 clean steps
"""

import sys

import numpy as np

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


def findings(config: Detector, loss: np.ndarray, norm: np.ndarray) -> list[tuple[int, int, str, int]]:
    """What the detector finds: run, step, signal, steps ago that it began."""
    state, found = fresh(config, loss.shape[:1]), []
    for step in range(loss.shape[1]):
        state, finding = observe(config, state, loss[:, step], norm[:, step])
        for run in np.flatnonzero(finding.signal_R != NOTHING).tolist():
            found.append((run, step, SIGNALS[finding.signal_R[run]], int(finding.began_R[run])))
    return found


if __name__ == "__main__":
    total, length = int(sys.argv[1]), int(sys.argv[2])
    alarms = [
        found for seed in range(-(-total // 500)) for found in findings(Detector(), *clean_curves(500, length, seed))
    ]
    print(f"{len(alarms)} false alarms in {-(-total // 500) * 500 * length:.3g} steps: {alarms[:20]}")

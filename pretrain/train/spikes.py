"""Finds loss spikes from the per-step loss and gradient norm, on the host.

A value is judged by its robust z-score, (x - median) / (1.4826 MAD), over the last steps; only what lies above counts.
Where they fall, as losses do early, what they are judged against is their line (through the medians of the oldest and
of the newest third: Tukey's resistant line), so that the fall does not widen what counts as noise.
One step far out is enough, and so are two in a row that are less far out: clean runs have heavy tails, but their
outliers come alone. The gradient norm is judged by its logarithm. A number that is not finite is a spike at once; a
loss whose level climbs slowly is found by comparing medians. Values that spike enter the window cut to its edge, so
that they do not widen it.

The detector is a pure function of its state and two numbers, and the state is JSON: a run that is killed and replayed
comes to the same findings. Arrays may have leading axes, one run each.

Axes: R runs (any leading axes, or none) · S the two signals, loss and log gradient norm · W steps of the window.
"""

import dataclasses
from typing import Any, NamedTuple

import gin
import numpy as np

from pretrain.core.errors import check
from pretrain.core.fields import check_fields

NOTHING, NOT_FINITE, LOSS, GRADIENT, SLOW = range(5)
SIGNALS = ("nothing", "not finite", "loss", "gradient norm", "slow divergence")
SIGMA = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
RECENT = 32  # steps whose median is the level of the loss now
LOSS_FLOOR, NORM_FLOOR = 0.002, 0.05  # least sigma: part of the loss; of the log norm


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Detector:
    """What counts as a spike.

    Attributes:
        window: steps that the median and its deviation are taken over.
        least: steps before the first finding, and between two; numbers that are not finite are always found.
        alarm: z-score at which one step is a spike.
        alert: z-score at which two steps in a row are.
        gradient_rise: a gradient norm also has to be this many times the median.
        slow_rise: part of its best level by which the loss has to climb to be diverging; None does not look.
    """

    window: int = 128
    least: int = 32
    alarm: float = 25.0
    alert: float = 7.0
    gradient_rise: float = 5.0
    slow_rise: float | None = 0.1

    def __post_init__(self):
        check_fields(self)
        check(self.window >= RECENT, f"Detector.window must be >= {RECENT} steps, got {self.window}")
        check(1 <= self.least <= self.window, f"Detector.least must be 1 to window ({self.window}), got {self.least}")
        check(0 < self.alert <= self.alarm, f"Detector: 0 < alert <= alarm, got {self.alert} and {self.alarm}")
        check(self.gradient_rise >= 1, f"Detector.gradient_rise must be >= 1, got {self.gradient_rise}")
        check(self.slow_rise is None or self.slow_rise > 0, f"Detector.slow_rise must be > 0, got {self.slow_rise}")


@dataclasses.dataclass(frozen=True)
class State:
    """What the detector remembers.

    Attributes:
        count: steps seen.
        values_RSW: the window, a ring: step n is at n modulo W.
        alert_RS: whether the last step's value was beyond `alert`.
        quiet_R: steps since the last finding.
        best_R: lowest level of the loss so far.
    """

    count: int
    values_RSW: np.ndarray
    alert_RS: np.ndarray
    quiet_R: np.ndarray
    best_R: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """As JSON; floats come back as they were."""
        held = self.values_RSW[..., : self.count]
        lists = {"alert": self.alert_RS.tolist(), "quiet": self.quiet_R.tolist()}
        best = self.best_R.tolist() if np.all(np.isfinite(self.best_R)) else None
        return {"count": self.count, "values": held.tolist(), "best": best, **lists}

    @classmethod
    def from_json(cls, kept: dict[str, Any], config: Detector) -> "State":
        """The state that `to_json` was called on; a fresh one where the window is another."""
        values_RSW = np.array(kept["values"], float)
        if values_RSW.shape[-1] != min(kept["count"], config.window):
            return fresh(config)
        room = np.zeros((*values_RSW.shape[:-1], config.window))
        room[..., : values_RSW.shape[-1]] = values_RSW
        quiet_R = np.array(kept["quiet"])
        best_R = np.full(quiet_R.shape, np.inf) if kept["best"] is None else np.array(kept["best"], float)
        return cls(kept["count"], room, np.array(kept["alert"], bool), quiet_R, best_R)


class Finding(NamedTuple):
    """What was found at a step.

    Attributes:
        signal_R: index into `SIGNALS`.
        began_R: steps ago that it began, 0 for this one.
        z_RS: robust z-scores; not a number where there is nothing to compare with.
        median_RS: of the window before this step, without its fall: loss, gradient norm.
    """

    signal_R: np.ndarray
    began_R: np.ndarray
    z_RS: np.ndarray
    median_RS: np.ndarray


def fresh(config: Detector, runs: tuple[int, ...] = ()) -> State:
    """The state before the first step."""
    values_RSW, alert_RS = np.zeros((*runs, 2, config.window)), np.zeros((*runs, 2), bool)
    return State(0, values_RSW, alert_RS, np.full(runs, config.least), np.full(runs, np.inf))


def observe(config: Detector, state: State, loss_R: Any, grad_norm_R: Any) -> tuple[State, Finding]:
    """Looks at one step.

    Args:
        config, state: what to look for, and what was seen before.
        loss_R: of the step.
        grad_norm_R: before clipping; None where it says nothing, such as after an overflow in float16.
    """
    loss_R = np.asarray(loss_R, float)
    held_RSW = _without_fall(state.values_RSW[..., _places(config, state.count, state.count)])
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        median_RS = np.median(held_RSW, axis=-1) if state.count else np.full(state.alert_RS.shape, np.nan)
        log_norm_R = median_RS[..., 1] if grad_norm_R is None else np.log(np.asarray(grad_norm_R, float) + 1e-30)
        x_RS = np.stack([loss_R, np.where(np.isnan(log_norm_R) & (grad_norm_R is None), 0.0, log_norm_R)], axis=-1)
        floor_RS = np.stack([LOSS_FLOOR * np.abs(median_RS[..., 0]), np.full_like(loss_R, NORM_FLOOR)], axis=-1)
        spread_RS = np.median(np.abs(held_RSW - median_RS[..., None]), axis=-1) if state.count else floor_RS
        sigma_RS = np.maximum(np.maximum(SIGMA * spread_RS, floor_RS), 1e-12)
        z_RS = (x_RS - median_RS) / sigma_RS
    ready = state.count >= config.least
    high_RS, alert_RS = ready & (z_RS >= config.alarm), ready & (z_RS >= config.alert)
    rose_R = x_RS[..., 1] - median_RS[..., 1] >= np.log(config.gradient_rise)
    high_RS[..., 1] &= rose_R
    alert_RS[..., 1] &= rose_R
    twice_RS = alert_RS & state.alert_RS
    finite_R = np.all(np.isfinite(x_RS), axis=-1)
    edge_RS = median_RS + config.alert * sigma_RS
    cut_RS = np.where(ready & (x_RS > edge_RS), edge_RS, x_RS)
    kept_RS = np.where(np.isfinite(cut_RS), cut_RS, np.nan_to_num(median_RS))
    values_RSW = state.values_RSW.copy()
    values_RSW[..., state.count % config.window] = kept_RS
    level_R, slow_R = _level(config, state, values_RSW[..., 0, :], sigma_RS[..., 0])
    signal_R = np.select(
        [~finite_R, high_RS[..., 0] | twice_RS[..., 0], high_RS[..., 1] | twice_RS[..., 1], slow_R],
        [NOT_FINITE, LOSS, GRADIENT, SLOW],
        NOTHING,
    )
    signal_R = np.where((state.quiet_R >= config.least) | ~finite_R, signal_R, NOTHING)
    began_R = np.select(
        [signal_R == LOSS, signal_R == GRADIENT, signal_R == SLOW],
        [state.alert_RS[..., 0], state.alert_RS[..., 1], RECENT],
        0,
    )
    found_R = signal_R != NOTHING
    best_R = np.where(signal_R == SLOW, np.inf, np.minimum(state.best_R, level_R))
    quiet_R = np.where(found_R, 0, state.quiet_R + 1)
    median_RS = np.stack([median_RS[..., 0], np.exp(median_RS[..., 1])], axis=-1)
    return State(state.count + 1, values_RSW, alert_RS, quiet_R, best_R), Finding(signal_R, began_R, z_RS, median_RS)


def _places(config: Detector, count: int, newest: int) -> np.ndarray:
    """Where the newest values of a window are after `count` steps, the oldest of them first."""
    return np.arange(count - min(newest, count, config.window), count) % config.window


def _without_fall(values_RSW: np.ndarray) -> np.ndarray:
    """Values, the oldest first, moved along their line to the middle of the newest third; as they are if they rise.

    A curve that flattens lies above the line's end, but not above that middle: no clean fall is pushed upwards.
    """
    count = values_RSW.shape[-1]
    third = count // 3
    if not third:
        return values_RSW
    rise_RS = np.median(values_RSW[..., -third:], axis=-1) - np.median(values_RSW[..., :third], axis=-1)
    slope_RS = np.minimum(rise_RS / (count - third), 0)
    before_W = count - 1 - (third - 1) / 2 - np.arange(count)
    return values_RSW + slope_RS[..., None] * before_W


def _level(config: Detector, state: State, loss_RW: np.ndarray, sigma_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The level of the loss after this step, infinite where it is not looked at, and whether it has climbed too far."""
    if config.slow_rise is None or state.count < config.window or state.count % (RECENT // 4):
        return np.full_like(sigma_R, np.inf), np.zeros_like(sigma_R, bool)
    level_R = np.median(loss_RW[..., _places(config, state.count + 1, RECENT)], axis=-1)
    with np.errstate(invalid="ignore"):
        slow_R = level_R - state.best_R > np.maximum(
            config.slow_rise * np.abs(state.best_R), config.alert / 2 * sigma_R
        )
    return level_R, slow_R & np.isfinite(state.best_R)

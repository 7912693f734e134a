"""Learning-rate schedules with warm-up, as functions of the step (0-based), all ending at `final_ratio * peak`."""

import dataclasses
from typing import Literal

import gin
import jax.numpy as jnp
import optax

from pretrain.core.errors import check
from pretrain.core.fields import check_fields


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning-rate schedule.

    Attributes:
        kind: "constant"; "cosine" (Loshchilov and Hutter 2017); "wsd", warm-up, stable, linear decay over the last
            `decay_fraction` of the run (Hu et al. 2024); "inverse_sqrt", peak * sqrt(warmup / step) (T5).
        peak: highest learning rate.
        warmup_steps: steps of linear warm-up from 0.
        decay_fraction: part of the run that "wsd" spends decaying.
        final_ratio: last learning rate over the peak, for "cosine" and "wsd".
    """

    kind: Literal["constant", "cosine", "wsd", "inverse_sqrt"] = "cosine"
    peak: float = 1e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.2
    final_ratio: float = 0.1

    def __post_init__(self):
        check_fields(self)
        check(self.peak > 0, f"Schedule.peak must be > 0, got {self.peak}")
        check(self.warmup_steps >= 0, f"Schedule.warmup_steps must be >= 0, got {self.warmup_steps}")
        check(0 < self.decay_fraction <= 1, f"Schedule.decay_fraction must be in (0, 1], got {self.decay_fraction}")
        check(0 <= self.final_ratio <= 1, f"Schedule.final_ratio must be in [0, 1], got {self.final_ratio}")

    def build(self, total_steps: int) -> optax.Schedule:
        """The schedule of a run of `total_steps`: step -> learning rate."""
        peak, final = self.peak, self.peak * self.final_ratio
        warmup = min(self.warmup_steps, total_steps)
        rest = max(total_steps - warmup, 1)
        if self.kind == "constant":
            after = optax.constant_schedule(peak)
        elif self.kind == "cosine":
            after = optax.cosine_decay_schedule(peak, rest, alpha=self.final_ratio)
        elif self.kind == "wsd":
            decay = min(max(round(total_steps * self.decay_fraction), 1), rest)
            after = optax.linear_schedule(peak, final, decay, transition_begin=rest - decay)
        else:
            start = max(warmup, 1)
            after = lambda count: peak * jnp.sqrt(start / jnp.maximum(count + start, 1))  # noqa: E731
        if warmup == 0:
            return after
        # The first step already learns: it gets peak / warmup, not 0.
        return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1)), after], [warmup])

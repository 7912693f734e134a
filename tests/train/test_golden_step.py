"""Three training steps with known numbers: any change of model, loss, optimizer, seeds or schedule shows here.

If a change is meant to alter them, run `PYTHONPATH=tests python tests/train/test_golden_step.py` and paste its output.
"""

import jax
import numpy as np
from tiny import CONFIG, model, packed_rows

from pretrain.objectives.causal import Causal
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.train.state import init_state
from pretrain.train.step import StepBuilder

GOLDEN = {
    "loss": [4.863650321960449, 3.799140453338623, 2.889763116836548],
    "grad_norm": [4.514421463012695, 2.791147232055664, 2.5725584030151367],
    "param_norm": [23.99637222290039, 24.0280704498291, 24.105138778686523],
}


def three_steps() -> dict[str, list[float]]:
    """Metrics of three steps on one packed batch, microbatched, with a z-loss."""
    functional, objective = model(CONFIG), Causal(z_loss=1e-3)
    optimizer, rate = build_optimizer(Optimizer(), Schedule(peak=1e-2, warmup_steps=2), 10, functional.logical_axes())
    builder = StepBuilder(functional, objective, optimizer, rate, microbatches=2)
    state = jax.jit(lambda: init_state(functional, optimizer, 0))()
    packed = packed_rows([[10, 6], [16], [3, 4, 5], [12]], 16)
    batch = objective.finish(packed, np.random.default_rng(0))
    step, values = jax.jit(builder.train), {name: [] for name in GOLDEN}
    for _ in range(3):
        state, metrics = step(state, batch)
        for name, column in values.items():
            column.append(float(metrics[name]))
    return values


def test_golden_step():
    # 2e-5: float32 sums in another order, on another CPU or jax; a real change moves the third step by far more.
    for name, column in three_steps().items():
        np.testing.assert_allclose(
            column, GOLDEN[name], rtol=2e-5,
            err_msg=f"{name} changed. Was it meant to: data order, initial values, loss, schedule? "
            "If the new numbers are right, renew them: PYTHONPATH=tests python tests/train/test_golden_step.py",
        )  # fmt: skip


if __name__ == "__main__":
    for metric, numbers in three_steps().items():
        print(f'    "{metric}": {numbers!r},')

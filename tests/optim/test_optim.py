"""Schedules by property, and the optimizer against AdamW written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.optim.optimizers import Optimizer, build_optimizer, is_matrix
from pretrain.optim.schedules import Schedule

KINDS = st.sampled_from(["constant", "cosine", "wsd", "inverse_sqrt"])


def rates_of(schedule: Schedule, steps: int) -> np.ndarray:
    """The rate of each step of a run, and of the one after it; one length for all, so that little is compiled."""
    return np.broadcast_to(schedule.build(steps)(jnp.arange(201)), 201)[: steps + 1]


@given(
    kind=KINDS, warmup=st.integers(0, 40), steps=st.integers(1, 200), final=st.floats(0, 1), decay=st.floats(0.05, 1)
)
@settings(deadline=None, max_examples=25)
def test_schedules_are_bounded_and_smooth(kind, warmup, steps, final, decay):
    rates = rates_of(Schedule(kind, 2.0, warmup, decay, final), steps)[:steps]
    assert (rates >= -1e-6).all() and (rates <= 2.0 + 1e-5).all()
    warm = min(warmup, steps)
    np.testing.assert_allclose(rates[:warm], 2.0 * (np.arange(warm) + 1) / max(warm, 1), rtol=1e-4)
    after = rates[warm:]
    assert (np.diff(after) <= 1e-5).all()  # falls, or stays
    if kind == "constant":
        np.testing.assert_allclose(after, 2.0)


@given(kind=KINDS, warmup=st.integers(0, 40), steps=st.integers(80, 200), decay=st.floats(0.05, 1))
@settings(deadline=None, max_examples=20)
def test_schedules_never_jump(kind, warmup, steps, decay):
    rates = rates_of(Schedule(kind, 2.0, warmup, decay, 0.0), steps)
    steps_of_descent = {"wsd": round(steps * decay), "inverse_sqrt": 2 * max(warmup, 1)}.get(kind, steps)
    steepest = 2.0 * np.pi / 2 / max(min(steps_of_descent, steps - warmup), 1)  # a cosine's; a line's is less
    assert (np.abs(np.diff(rates[warmup:])) <= steepest * 1.01 + 1e-6).all()
    np.testing.assert_allclose(rates[warmup], 2.0, rtol=1e-5)


@pytest.mark.parametrize(("kind", "last"), [("cosine", 0.2), ("wsd", 0.2), ("constant", 2.0)])
def test_schedules_end_where_they_say(kind, last):
    schedule = Schedule(kind, 2.0, 10, 0.3, 0.1).build(100)
    np.testing.assert_allclose(schedule(100), last, rtol=1e-5)


def test_known_points():
    wsd = Schedule("wsd", 1.0, 10, 0.2, 0.0).build(100)
    np.testing.assert_allclose([wsd(0), wsd(9), wsd(79), wsd(90)], [0.1, 1.0, 1.0, 0.5], rtol=1e-5)
    cosine = Schedule("cosine", 1.0, 0, 0.2, 0.0).build(100)
    np.testing.assert_allclose(cosine(50), 0.5, rtol=1e-5)
    root = Schedule("inverse_sqrt", 1.0, 16, 0.2, 0.0).build(10**6)
    np.testing.assert_allclose(root(64), 0.5, rtol=1e-2)


@pytest.mark.parametrize(
    "wrong", [{"kind": "linear"}, {"peak": 0.0}, {"warmup_steps": -1}, {"decay_fraction": 0.0}, {"final_ratio": 1.5}]
)
def test_schedule_refuses(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Schedule(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"kind": "sgd"}, {"b1": 1.0}, {"epsilon": 0.0}, {"weight_decay": -1.0}, {"clip_norm": 0.0}]
)
def test_optimizer_refuses(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Optimizer(**wrong)


def test_decay_is_for_matrices():
    assert is_matrix(("embed", "mlp")) and is_matrix(("layers", "embed", "mlp"))
    assert not is_matrix(("norm",)) and not is_matrix(("layers", "norm"))


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_adamw_with_clipping_equals_numpy(clip):
    rng = np.random.default_rng(0)
    params = {"scale": rng.normal(size=3), "kernel": rng.normal(size=(3, 4))}
    axes = {"scale": ("norm",), "kernel": ("embed", "mlp")}
    config = Optimizer(b1=0.8, b2=0.9, epsilon=1e-3, weight_decay=0.3, clip_norm=clip)
    optimizer, rate = build_optimizer(config, Schedule("cosine", 0.1, 2), 10, axes)
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(ours)
    moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in params.items()}
    for step in range(5):
        grads = {name: rng.normal(size=p.shape) for name, p in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grads), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        factor = 1.0 if clip is None else min(1.0, clip / norm)
        for name, p in params.items():
            g = grads[name] * factor
            m, v = moments[name]
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            moments[name] = (m, v)
            direction = (m / (1 - 0.8 ** (step + 1))) / (np.sqrt(v / (1 - 0.9 ** (step + 1))) + 1e-3)
            decay = 0.3 * p if name == "kernel" else 0
            params[name] = p - float(rate(step)) * (direction + decay)
    for name, p in params.items():
        np.testing.assert_allclose(ours[name], p, rtol=1e-4, atol=1e-5)

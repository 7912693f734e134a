"""The next-frame objective against numpy: what is predicted where, and what counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG

from pretrain.core.arrays import instruction
from pretrain.core.errors import UserError
from pretrain.core.video import VideoShape, to_patches
from pretrain.evaluate.rollout import act
from pretrain.models.build import build_model
from pretrain.objectives.next_frame import NextFrame

VIDEO = VideoShape(4, 8, 1, patch=4, lowest=-1.0, highest=1.0)
SEGMENTS = np.array([[1, 1, 1, 2, 0], [1, 2, 2, 2, 2]], np.int32)


def packed(video=VIDEO, seed=0):
    rng = np.random.default_rng(seed)
    shape = SEGMENTS.shape
    rows = {"frames": rng.integers(0, 256, (*shape, 4, 8, 1)).astype(np.uint8), "frames_segment_ids": SEGMENTS}
    sizes = {"states": video.state_dim, "actions": video.action_dim, "action_targets": video.action_dim}
    for name, size in sizes.items():
        rows[name] = rng.uniform(-1, 1, (*shape, size)).astype(np.float32)
    return rows | {"action_weights": (SEGMENTS == 2).astype(np.float32)}


def outputs(video=VIDEO, seed=1):
    rng, shape = np.random.default_rng(seed), SEGMENTS.shape
    ahead = shape[0], shape[1] - 1
    values = {"patches": (*ahead, 2, 16), "state": (*ahead, video.state_dim), "action": (*shape, video.action_dim)}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in values.items()}


def test_a_step_counts_where_its_episode_goes_on():
    batch = NextFrame(VIDEO).finish(packed(), np.random.default_rng(0))
    assert batch["loss_weights"].tolist() == [[1, 1, 0, 0, 0], [0, 1, 1, 1, 0]]


def test_losses_are_mean_squares_of_changes():
    objective, found = NextFrame(VIDEO, action=3.0), outputs()
    batch = objective.finish(packed(), np.random.default_rng(0))
    terms, metrics = jax.jit(objective.loss)(found, batch)
    frames = np.asarray(to_patches(batch["frames"], 4), np.float64)
    pixels = states = copied = 0.0
    for row, step in np.argwhere(batch["loss_weights"]):
        change = frames[row, step + 1] - frames[row, step]
        copied += np.mean(change**2)
        pixels += np.mean((found["patches"][row, step] - change) ** 2)
        moved = batch["states"][row, step + 1] - batch["states"][row, step]
        states += np.mean((found["state"][row, step] - moved) ** 2)
    wrong = np.mean((found["action"] - batch["action_targets"]) ** 2, axis=-1)[SEGMENTS == 2].sum()
    for name, total, weight in (("pixels", pixels, 5), ("state", states, 5), ("action", wrong, 5)):
        np.testing.assert_allclose(terms[name].sum, total, rtol=1e-5)
        assert terms[name].weight == weight
    np.testing.assert_allclose(metrics["copy_error"][0], copied, rtol=1e-5)
    assert terms["action"].coefficient == 3.0


def test_the_last_steps_alone_may_be_imagined():
    every, last = NextFrame(VIDEO), NextFrame(VIDEO, imagined=2)
    assert last.steps(5) == slice(2, 4) and every.steps(5) == NextFrame(VIDEO, imagined=9).steps(5) == slice(0, 4)
    batch, found = every.finish(packed(), np.random.default_rng(0)), outputs()
    of_last, _ = last.loss({**found, "patches": found["patches"][:, 2:], "state": found["state"][:, 2:]}, batch)
    without = {**batch, "loss_weights": batch["loss_weights"] * (np.arange(5) >= 2)}
    of_every, _ = every.loss(found, without)
    for name, term in of_last.items():
        np.testing.assert_allclose(term.sum, of_every[name].sum, rtol=1e-6)
        assert term.weight == of_every[name].weight


def test_the_policy_does_what_it_is_told():
    """The same frames and states with two instructions, which ask for opposite actions."""
    video = VideoShape(4, 8, 1, patch=4, instruction=8, lowest=-1.0, highest=1.0)
    objective, rng = NextFrame(video), np.random.default_rng(0)
    needs = objective.model_needs
    model = build_model(dataclasses.replace(CONFIG, architecture="encoder_decoder"), needs)
    told = np.stack([instruction(text, 8) for text in ("left", "right")])
    rows = {name: np.repeat(array[:1], 2, axis=0) for name, array in packed(video).items()}
    rows["instructions"] = np.repeat(told[:, None], SEGMENTS.shape[1], axis=1)
    rows["action_targets"][:] = np.array([-0.5, 0.5])[:, None, None]
    rows["action_weights"] = (rows["frames_segment_ids"] > 0).astype(np.float32)
    batch, optimizer = objective.finish(rows, rng), optax.adam(3e-3)

    def loss(values):
        module = model.module(values)
        return objective.loss(objective.head(module, objective.forward(module, batch).hidden, batch), batch)[0][
            "action"
        ].sum

    @jax.jit
    def fit(values):
        def update(carry, _):
            values, moments = carry
            changes, moments = optimizer.update(jax.grad(loss)(values), moments)
            return (optax.apply_updates(values, changes), moments), None

        return jax.lax.scan(update, (values, optimizer.init(values)), length=100)[0][0]

    values = fit(jax.jit(model.init)(jax.random.key(0)))
    done = jax.jit(functools.partial(act, model, video))
    frames, states = rows["frames"][:, 0], rows["states"][:, 0]
    np.testing.assert_allclose(done(values, frames, states, told), rows["action_targets"][:, 0], atol=0.1)
    np.testing.assert_allclose(done(values, frames, states, told[::-1]), -rows["action_targets"][:, 0], atol=0.1)


def test_instructions_of_another_length_are_refused():
    video = VideoShape(4, 8, 1, patch=4, instruction=8, lowest=-1.0, highest=1.0)
    rows = packed(video) | {"instructions": np.zeros((*SEGMENTS.shape, 6), np.uint8)}
    with pytest.raises(UserError, match=r"6 bytes, and VideoShape\.instruction is 8: set it to 6"):
        NextFrame(video).finish(rows, np.random.default_rng(0))


def test_numbers_are_scaled_to_their_range():
    wide = VideoShape(4, 8, 1, patch=4, lowest=0.0, highest=512.0)
    np.testing.assert_allclose(wide.normalized(jnp.array([0.0, 256.0, 512.0])), [-1, 0, 1])
    np.testing.assert_allclose(wide.restored(wide.normalized(jnp.array([3.0, 500.0]))), [3, 500], rtol=1e-5)


def test_codes_are_those_of_the_next_frame():
    video = VideoShape(4, 8, 1, patch=4, levels=(2, 3), lowest=-1.0, highest=1.0)
    objective = NextFrame(video)
    batch = objective.finish(packed(), np.random.default_rng(0))
    digits = np.random.default_rng(3).integers(0, [2, 3], (*SEGMENTS.shape, 2, 2)).astype(np.float32)
    codes = (digits @ np.array([1, 2])).astype(int)
    right = (50 * np.eye(6)[codes[:, 1:]]).astype(np.float32)
    rebuilt = np.asarray(to_patches(batch["frames"], 4))
    found = {**outputs(), "patches": right, "digits": digits, "rebuilt": rebuilt + 0.5}
    terms, metrics = jax.jit(objective.loss)(found, batch)
    assert "pixels" not in terms and terms["codes"].weight == 10
    assert terms["codes"].sum < 1e-6 and metrics["code_accuracy"] == (10, 10)
    np.testing.assert_allclose(terms["reconstruction"].sum / terms["reconstruction"].weight, 0.25, rtol=1e-5)
    of_codes = lambda digits: objective.loss({**found, "digits": digits}, batch)[0]["codes"].sum  # noqa: E731
    slope = jax.jit(jax.grad(of_codes))(digits)
    assert (slope == 0).all(), "codes are learned from reconstruction alone"


def test_a_film_has_neither_states_nor_actions():
    film = NextFrame(VideoShape(4, 8, 1, patch=4, state_dim=0, action_dim=0))
    assert film.features == ("frames",) and film.packed_length(6) == {"frames": 6}
    batch = film.finish(packed(), np.random.default_rng(0))
    terms, _ = film.loss({"patches": outputs()["patches"]}, batch)
    assert batch.keys() == film.batch_spec(2, 5).keys() and terms.keys() == {"pixels"}


def test_coefficients_are_above_nothing():
    with pytest.raises(UserError, match=r"NextFrame\.action must be > 0"):
        NextFrame(VIDEO, action=0.0)

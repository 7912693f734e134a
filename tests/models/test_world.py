"""The world model: causal over time, whole within a frame, no action seen by the policy; rollouts and animations."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny import CONFIG, params

from pretrain.core.errors import UserError
from pretrain.core.objective import ModelNeeds
from pretrain.core.video import VideoShape, code_of, digits_of, from_patches, to_patches
from pretrain.evaluate.rollout import act, psnr, rollout, side_by_side, write_animation
from pretrain.models.build import build_model
from pretrain.models.codes import rounded
from pretrain.models.world import moves

VIDEO = VideoShape(8, 12, 1, patch=4, state_dim=2, action_dim=3, lowest=0.0, highest=10.0)
CODED = dataclasses.replace(VIDEO, levels=(2, 3))
SMALL = dataclasses.replace(CONFIG, architecture="encoder_decoder")
TIME, PATCHES = 5, 6


@functools.cache
def world(video=VIDEO):
    needs = ModelNeeds(("encoder_decoder",), backbone="world", shape=video)
    return build_model(SMALL, needs), params(SMALL, needs)


def recording(batch=2, time=TIME, seed=0):
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 256, (batch, time, 8, 12, 1)).astype(np.uint8)
    states = rng.uniform(0, 10, (batch, time, 2)).astype(np.float32)
    return frames, states, rng.uniform(0, 10, (batch, time, 3)).astype(np.float32)


def test_patches_are_rows_of_squares_and_come_back():
    frames, _, _ = recording()
    patches = to_patches(frames, 4)
    assert patches.shape == (2, TIME, PATCHES, 16) and float(jnp.abs(patches).max()) <= 1
    np.testing.assert_allclose(patches[1, 2, 4], frames[1, 2, 4:8, 4:8].reshape(-1) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(from_patches(patches, VIDEO), frames)
    assert from_patches(patches + 3, VIDEO).min() == 255


def test_codes_are_numbers_of_their_digits():
    codes = jnp.arange(24)
    digits = digits_of(codes, (2, 3, 4))
    assert digits.shape == (24, 3) and digits.max(0).tolist() == [1, 2, 3]
    np.testing.assert_array_equal(code_of(digits, (2, 3, 4)), codes)
    assert len({tuple(row) for row in digits.tolist()}) == 24


def test_rounding_gives_levels_and_lets_gradients_through():
    z = jnp.linspace(-6, 6, 50)[:, None] * jnp.ones(2)
    digits = rounded(z, (2, 5))
    assert sorted(set(np.asarray(digits[:, 1]).tolist())) == [0, 1, 2, 3, 4]
    slope = jax.grad(lambda z: rounded(z, (2, 5)).sum())(z)
    np.testing.assert_allclose(slope, jax.grad(lambda z: (jax.nn.sigmoid(z) * jnp.array([1, 4])).sum())(z), rtol=1e-6)


@functools.cache
def encode(video=VIDEO):
    """Compiled: (patches, states, segments) -> what is known, tokens of patches and state."""
    model, values = world(video)
    return jax.jit(lambda *inputs: model.module(values).encode(*inputs).tokens_BTMD)


def test_no_frame_sees_a_later_one_and_every_token_sees_whole_frames():
    frames, states, _ = recording(batch=1)
    segments, known = jnp.ones((1, TIME), jnp.int32), encode()

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def slopes(patches, states, step):
        return jnp.sum(jnp.sin(known(patches, states, segments)[0, step]))

    for step in (0, 2, TIME - 1):
        of_patches, of_states = map(np.asarray, slopes(to_patches(frames, 4), VIDEO.normalized(states), step))
        assert (of_patches[0, step + 1 :] == 0).all() and (of_states[0, step + 1 :] == 0).all()
        assert (np.abs(of_patches[0, : step + 1]).max(-1) > 0).all() and (of_states[0, : step + 1] != 0).all()


def test_the_policy_sees_the_present_frame_alone_and_the_whole_of_it():
    model, values = world()
    frames, states, _ = recording(batch=1)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def slopes(patches, states):
        module = model.module(values)
        return jnp.sum(jnp.sin(module.encode(patches, states, jnp.ones((1, TIME), jnp.int32)).present_BTD[0, 3]))

    of_patches, of_states = map(np.asarray, slopes(to_patches(frames, 4), VIDEO.normalized(states)))
    assert (np.abs(of_patches[0, 3]).max(-1) > 0).all() and (of_states[0, 3] != 0).all()
    assert not np.delete(of_patches, 3, axis=1).any() and not np.delete(of_states, 3, axis=1).any()


def test_an_action_that_is_a_state_to_go_to_begins_at_the_present_one():
    video = dataclasses.replace(VIDEO, action_dim=2, action_is_state=True)
    model, values = world(video)
    frames, states, _ = recording()
    still = jax.tree.map(jnp.zeros_like, values)
    found = jax.jit(functools.partial(act, model, video))(still, frames[:, -1], states[:, -1])
    np.testing.assert_allclose(found, states[:, -1], rtol=1e-5)
    with pytest.raises(UserError, match="as many numbers of a state"):
        dataclasses.replace(VIDEO, action_is_state=True)


def test_episodes_of_a_row_do_not_see_each_other():
    frames, states, _ = recording(batch=1)
    patches, states, apart = to_patches(frames, 4), VIDEO.normalized(states), np.array([[1, 1, 2, 2, 0]])
    first, second = (np.asarray(encode()(each, states, apart)) for each in (patches, -patches))
    mixed = encode()(jnp.concatenate([-patches[:, :2], patches[:, 2:]], axis=1), states, apart)
    np.testing.assert_array_equal(mixed[:, :2], second[:, :2])
    np.testing.assert_array_equal(mixed[:, 2:], first[:, 2:])
    assert (first[:, :2] != second[:, :2]).any()


def test_an_action_changes_its_own_future_and_no_other():
    model, values = world()
    frames, states, actions = recording(batch=1)

    @jax.jit
    def said(actions):
        module = model.module(values)
        past = module.encode(to_patches(frames, 4), VIDEO.normalized(states), jnp.ones((1, TIME), jnp.int32))
        future = module.imagine(past, VIDEO.normalized(actions))
        return module.next_patches(future), future.change_BTS, module.policy(past)

    other = actions.copy()
    other[:, 3] += 2
    (patches, state, policy), (patches_2, _, policy_2) = said(actions), said(other)
    change = np.abs(np.asarray(patches - patches_2)).max((0, 2, 3))
    assert change[3] > 1e-3 and (np.delete(change, 3) == 0).all()
    assert state.shape == (1, TIME, 2) and policy.shape == (1, TIME, 3)
    np.testing.assert_array_equal(policy, policy_2)


def test_moves_are_changes_within_an_episode():
    states = jnp.arange(10.0).reshape(1, 5, 2) ** 2
    found = moves(states, jnp.array([[1, 1, 2, 2, 0]]))
    np.testing.assert_array_equal(found, [[[0, 0], [4, 8], [0, 0], [20, 24], [0, 0]]])


def test_patches_know_how_far_they_are_from_where_the_robot_is():
    video = dataclasses.replace(VIDEO, state_is_place=True)  # 2 x 3 patches
    module, values = world(video)
    module = module.module(values)
    states = jnp.array([[[-1 / 3, -0.5], [1 / 3, -0.5]]])  # two steps; x, y
    away = np.asarray(jax.jit(lambda states: module._away(states))(states))[0]
    assert (away[:, -1] == 0).all(), "the state's own token is at no place"
    one_right = module._away(states + jnp.array([2 / 3, 0.0]))[0]
    np.testing.assert_allclose(one_right[:, [1, 2, 4, 5]], away[:, [0, 1, 3, 4]], rtol=1e-4, atol=1e-5)
    one_down = module._away(states + jnp.array([0.0, 1.0]))[0]
    np.testing.assert_allclose(one_down[:, 3:6], away[:, :3], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="state_is_place needs two numbers"):
        dataclasses.replace(VIDEO, state_dim=1, state_is_place=True)


@functools.cache
def ahead(video=VIDEO):
    """Compiled: a rollout."""
    return jax.jit(functools.partial(rollout, world(video)[0], video))


@pytest.mark.parametrize("video", [VIDEO, CODED], ids=["pixels", "codes"])
def test_a_rollout_goes_on_from_its_own_frames(video):
    frames, states, actions = recording()
    values = world(video)[1]
    found, found_states = ahead(video)(values, frames[:, :3], states[:, :3], actions[:, :3])
    assert found.shape == (2, 3, 8, 12, 1) and found.dtype == jnp.uint8 and found_states.shape == (2, 3, 2)
    later = actions[:, :3].copy()
    later[:, 2] = 10 - later[:, 2]
    other, _ = ahead(video)(values, frames[:, :3], states[:, :3], later)
    np.testing.assert_array_equal(other[:, :2], found[:, :2])
    assert (np.asarray(other[:, 2]) != found[:, 2]).any()


def test_a_film_without_states_and_actions_can_be_imagined():
    video = dataclasses.replace(VIDEO, state_dim=0, action_dim=0)
    imagine = functools.partial(rollout, world(video)[0], video, steps=2)
    found, states = jax.eval_shape(imagine, world(video)[1], recording()[0])
    assert found.shape == (2, 2, 8, 12, 1) and states is None


def test_a_model_that_predicts_no_change_copies_the_last_frame():
    frames, states, actions = recording()
    still = jax.tree.map(jnp.zeros_like, world()[1])
    found, found_states = ahead()(still, frames[:, :3], states[:, :3], actions[:, :3])
    np.testing.assert_array_equal(found, np.broadcast_to(frames[:, 2:3], found.shape))
    np.testing.assert_allclose(found_states, np.broadcast_to(states[:, 2:3], found_states.shape), rtol=1e-5)


def test_noise_is_measured_in_decibels():
    frames = np.full((2, 4, 4, 1), 100, np.uint8)
    assert psnr(frames, frames) == np.inf
    np.testing.assert_allclose(psnr(frames + 10, frames), 20 * np.log10(25.5))


def test_an_animation_holds_all_frames(tmp_path):
    films = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 12, 3)).astype(np.uint8)
    film = side_by_side(*films, gap=3, scale=2)
    assert film.shape == (6, 16, 51, 3) and (film[:, :, 24:27] == 255).all()
    write_animation(tmp_path / "film.gif", film)
    with Image.open(tmp_path / "film.gif") as picture:
        assert (picture.n_frames, picture.size, picture.info["duration"]) == (6, (51, 16), 100)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [({"patch": 5}, "cannot be cut into patches"), ({"lowest": 9.0, "highest": 1.0}, "must be below"),
     ({"levels": (1,)}, "levels"), ({"height": 0}, "height must be > 0"), ({"action_dim": -1}, "action_dim")],
)  # fmt: skip
def test_impossible_sizes_are_refused(fields, problem):
    with pytest.raises(UserError, match=problem):
        VideoShape(**fields)


def test_other_positions_are_refused():
    with pytest.raises(UserError, match="positions"):
        build_model(dataclasses.replace(SMALL, positions="learned"), ModelNeeds((), backbone="world", shape=VIDEO))

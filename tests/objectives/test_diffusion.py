"""Diffusion: paths, predictions, the draw of a row, samplers with a model that knows, the average of the weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG, params

from pretrain.core.diffusion import PictureShape, picture_and_noise, signal_and_noise, wanted
from pretrain.core.errors import UserError
from pretrain.core.images import encode
from pretrain.core.objective import ModelNeeds
from pretrain.core.video import cut, digits_of, joined
from pretrain.evaluate.sampling import sample
from pretrain.models.build import build_model
from pretrain.models.diffusion import grid_sinusoids
from pretrain.objectives.diffusion import Diffusion
from pretrain.optim.averaging import average_of, keep_average

PATHS, PREDICTIONS = ("linear", "cosine", "straight"), ("noise", "picture", "v", "flow")
SHAPE = PictureShape(4, 8, 1, patch=4, classes=3)
NEEDS = ModelNeeds(("encoder",), backbone="diffusion", shape=SHAPE)
SMALL = dataclasses.replace(CONFIG, architecture="encoder")


@pytest.mark.parametrize("path", PATHS)
def test_a_path_goes_from_the_picture_to_noise(path):
    a, b = signal_and_noise(path, jnp.linspace(0, 1, 11))
    np.testing.assert_allclose((a[0], b[0]), (1, 0), atol=1e-6)
    assert a[-1] < 0.01 and b[-1] > 0.99 and (np.diff(a) < 0).all() and (np.diff(b) > 0).all()
    np.testing.assert_allclose(a + b if path == "straight" else a**2 + b**2, 1, atol=1e-5)


def test_the_linear_path_is_that_of_a_thousand_small_steps():
    betas = np.linspace(1e-4, 0.02, 1000)
    a, _ = signal_and_noise("linear", jnp.array([0.25, 0.5, 0.9]))
    np.testing.assert_allclose(a, np.sqrt(np.cumprod(1 - betas))[[249, 499, 899]], atol=0.003)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("predict", PREDICTIONS)
def test_every_prediction_implies_the_picture_and_the_noise(path, predict):
    rng = np.random.default_rng(0)
    picture, noise = rng.normal(size=(2, 3, 5)).astype(np.float32)
    a, b = signal_and_noise(path, jnp.array([0.1, 0.5, 0.8])[:, None])
    found = picture_and_noise(predict, wanted(predict, picture, noise, a, b), a * picture + b * noise, a, b)
    np.testing.assert_allclose(found[0], picture, atol=1e-4)
    np.testing.assert_allclose(found[1], noise, atol=1e-4)


class Knows:
    """A model of a single picture a class; without a label it says their mean."""

    def __init__(self, path, predict):
        rng = np.random.default_rng(1)
        self.path, self.predict, self.codes, self.shape = path, predict, None, SHAPE
        self.pictures = jnp.asarray(rng.uniform(-0.5, 0.5, (4, 2, 16)), jnp.float32).at[3].set(0.0)

    def __call__(self, seen_BNP, times_B, labels_B):
        a, b = (each[:, None, None] for each in signal_and_noise(self.path, times_B))
        picture = self.pictures[labels_B]
        return wanted(self.predict, picture, (seen_BNP - a * picture) / b, a, b)

    def said(self, hidden):
        return hidden


@pytest.mark.parametrize(
    ("path", "predict", "sampler"),
    [("straight", "flow", "euler"), ("straight", "flow", "ddim"), ("cosine", "v", "ddim"), ("linear", "noise", "ddim"),
     ("cosine", "picture", "euler")],
)  # fmt: skip
def test_a_model_that_knows_the_picture_brings_it_out_of_noise(path, predict, sampler):
    model, labels = Knows(path, predict), jnp.array([0, 2, 1])
    draw = functools.partial(sample, model, SHAPE, path=path, predict=predict, sampler=sampler, steps=40)
    found = jax.jit(draw)(jax.random.key(0), labels)
    np.testing.assert_allclose(found, model.pictures[labels], atol=0.06 if sampler == "euler" else 0.01)


def test_guidance_goes_beyond_what_the_label_says():
    model, labels = Knows("straight", "flow"), jnp.array([0, 2, 1])
    draw = functools.partial(sample, model, SHAPE, path="straight", predict="flow", steps=10, guidance=1.5)
    np.testing.assert_allclose(jax.jit(draw)(jax.random.key(0), labels), 1.5 * model.pictures[labels], atol=0.01)


FILM = dataclasses.replace(SHAPE, frames=4, tube=2, given=2, classes=1)


class Copies:
    """A model of films that says: the frames to come are those that were given, as it sees them."""

    codes = None

    def __call__(self, seen_BNP, times_B, labels_B):
        a, b = (each[:, None, None] for each in signal_and_noise("straight", times_B))
        picture = jnp.tile(seen_BNP[:, : FILM.given_patches], (1, 2, 1))
        return wanted("flow", picture, (seen_BNP - a * picture) / b, a, b)

    def said(self, hidden):
        return hidden


def test_a_film_goes_on_from_frames_that_are_given_and_stay():
    given = jax.random.uniform(jax.random.key(1), (3, FILM.given_patches, FILM.patch_values), minval=-1)
    draw = functools.partial(sample, Copies(), FILM, path="straight", predict="flow", steps=10)
    found = jax.jit(draw)(jax.random.key(0), jnp.zeros(3, jnp.int32), given)
    np.testing.assert_array_equal(found[:, : FILM.given_patches], given)
    np.testing.assert_allclose(found[:, FILM.given_patches :], given, atol=1e-5)
    with pytest.raises(AssertionError, match="2 frames must be given"):
        draw(jax.random.key(0), jnp.zeros(3, jnp.int32))


def test_given_frames_are_shown_without_noise_and_not_learned():
    objective, shown = Diffusion(FILM), {}
    film = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 8, 1), np.uint8)
    batch = {"frames": film, "labels": np.zeros(2, np.int32), "noise": np.arange(2, dtype=np.int32)}
    batch |= {"loss_weights": np.ones(2, np.float32), "unusable": np.zeros(2, np.float32)}

    class Looks(Copies):
        def __call__(self, seen_BNP, times_B, labels_B):
            shown["seen"] = seen_BNP
            return jnp.zeros_like(seen_BNP)

    model = Looks()
    hidden = objective.forward(model, batch).hidden
    given, patches = FILM.given_patches, np.asarray(objective.patches(batch))
    np.testing.assert_array_equal(shown["seen"][:, :given], patches[:, :given])
    assert np.abs(shown["seen"][:, given:] - patches[:, given:]).min(axis=(1, 2)).max() > 0
    outputs = objective.head(model, hidden, batch)
    loss = objective.loss(outputs, batch)[0]["denoising"].sum
    of = lambda part: objective.loss({**outputs, "said": outputs["said"].at[:, part].add(1.0)}, batch)[0]  # noqa: E731
    assert of(slice(given))["denoising"].sum == loss
    assert of(slice(given, None))["denoising"].sum != loss


def test_codes_are_drawn_and_become_pixels():
    shape = dataclasses.replace(SHAPE, levels=(5, 4, 3))
    needs = dataclasses.replace(NEEDS, shape=shape)
    model, values = build_model(SMALL, needs), params(SMALL, needs)
    pixels = jax.random.uniform(jax.random.key(2), (2, 2, 16), minval=-1)

    @jax.jit
    def tried(values):
        module = model.module(values)
        digits = module.codes.digits(pixels)
        centred = module.codes.centred(digits)
        said = sample(module, shape, jax.random.key(0), jnp.zeros(2, jnp.int32), path="straight", predict="flow")
        return digits, module.codes.nearest(centred), centred, said, module.codes.patches(digits)

    digits, again, centred, drawn, _ = tried(values)
    np.testing.assert_array_equal(digits, again)
    assert (centred >= -1).all() and (centred <= 1).all() and drawn.shape == (2, 2, 16)
    every = digits_of(jnp.arange(5 * 4 * 3), shape.levels)
    patches = jnp.clip(jax.jit(lambda values: model.module(values).codes.patches(every))(values), -1, 1)
    off = jnp.abs(drawn[:, :, None] - patches).max(-1).min(-1)
    np.testing.assert_allclose(off, 0, atol=1e-5)  # every patch that is drawn is that of a code


def test_tubes_are_cut_and_joined_again():
    film = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 8, 3), np.uint8)
    np.testing.assert_array_equal(joined(cut(film, 2, 2), (2, 3, 4), 2, 2), film)
    np.testing.assert_array_equal(joined(cut(film[:, 0], 2), (1, 3, 4), 2)[:, 0], film[:, 0])


def test_a_row_draws_the_same_wherever_it_stands():
    objective, numbers = Diffusion(SHAPE), jnp.array([5, 9, 2**31 - 1], jnp.int32)
    draw = jax.jit(lambda numbers: objective.draw(numbers, (2, 16)))
    times, noise = draw(numbers)
    again, other = draw(numbers[::-1])
    np.testing.assert_array_equal(times, again[::-1])
    np.testing.assert_array_equal(noise, other[::-1])
    many, normal = draw(jnp.arange(600, dtype=jnp.int32))
    assert abs(many.mean() - 0.5) < 0.05 and many.min() >= 0 and many.max() < 1 and abs(normal.std() - 1) < 0.02


def rows_of(objective, *records):
    rows = [objective.prepare(record, np.random.default_rng(0))["row"] for record in records]
    return {"row": np.stack(rows), "segment_ids": np.ones((len(rows), 1), np.int32)}


def test_labels_are_left_out_as_often_as_asked():
    objective = Diffusion(SHAPE, drop_label=0.25)
    packed = rows_of(objective, {"image": np.zeros((4, 8, 1), np.uint8), "label": np.array([1], np.int32)})
    many = {name: array.repeat(4000, axis=0) for name, array in packed.items()}
    batch = objective.finish(many, np.random.default_rng(0))
    assert abs((batch["labels"] == 3).mean() - 0.25) < 0.03 and set(batch["labels"]) == {1, 3}
    assert len(set(batch["noise"])) > 3990


def test_pictures_come_encoded_or_as_pixels_and_broken_ones_are_counted():
    objective, pixels = Diffusion(SHAPE, drop_label=0.0), np.arange(32, dtype=np.uint8).reshape(4, 8, 1)
    label, none = np.array([2], np.int32), np.zeros(0, np.int32)
    png = np.frombuffer(encode(pixels), np.uint8)
    good = [{"image": pixels, "label": label}, {"image": png, "label": label}]
    bad = [{"image": png[:20], "label": label}, {"image": png, "label": none}, {"image": png, "label": label + 1}]
    bad += [{"image": np.zeros((0, 8, 1), np.uint8), "label": label}, {"image": pixels.repeat(2, -1), "label": label}]
    batch = objective.finish(rows_of(objective, *good, *bad), np.random.default_rng(0))
    np.testing.assert_array_equal(batch["images"][:2], [pixels, pixels])
    assert batch["labels"][:2].tolist() == [2, 2]
    assert batch["loss_weights"].tolist() == [1, 1, 0, 0, 0, 0, 0] and batch["unusable"].sum() == 5


def test_films_need_no_class_and_short_ones_are_counted():
    objective, film = Diffusion(FILM), np.arange(5 * 32, dtype=np.uint8).reshape(5, 4, 8, 1)
    assert objective.features == ("frames",) and Diffusion(SHAPE).features == ("image", "label")
    batch = objective.finish(rows_of(objective, {"frames": film}, {"frames": film[:3]}), np.random.default_rng(0))
    assert batch["loss_weights"].tolist() == [1, 0] and batch["unusable"].tolist() == [0, 1]
    assert any((batch["frames"][0] == film[first : first + 4]).all() for first in (0, 1))


def test_a_fresh_layer_does_nothing_and_a_trained_one_minds_time_and_class():
    model, seen = build_model(SMALL, NEEDS), jax.random.normal(jax.random.key(0), (2, 2, 16))

    @jax.jit
    def say(values, times, labels):
        module = model.module(values)
        return module.said(module(seen, times, labels))

    times, labels = jnp.array([0.2, 0.7]), jnp.array([0, 1])
    assert (say(jax.jit(model.init)(jax.random.key(0)), times, labels) == 0).all()
    trained = params(SMALL, NEEDS)
    first = say(trained, times, labels)
    assert jnp.abs(first - say(trained, times, labels[::-1])).max() > 1e-3
    assert jnp.abs(first - say(trained, times + 0.1, labels)).max() > 1e-3
    np.testing.assert_array_equal(first[0], say(trained, times, jnp.array([0, 3]))[0])


def test_places_of_a_grid_are_all_different():
    places = grid_sinusoids(3, 5, 16)
    assert places.shape == (15, 16) and len(np.unique(places.round(4), axis=0)) == 15
    np.testing.assert_array_equal(places[2, 8:], places[4, 8:])  # one row
    np.testing.assert_array_equal(places[1, :8], places[6, :8])  # one column


def test_the_average_follows_the_weights():
    optimizer = optax.chain(optax.sgd(0.5), keep_average(0.9))
    weights = {"w": jnp.array([4.0, -2.0])}
    state, expected = optimizer.init(weights), np.array([4.0, -2.0])
    step = jax.jit(lambda state, weights: optimizer.update({"w": jnp.ones(2)}, state, weights))
    for count in range(30):
        updates, state = step(state, weights)
        weights = optax.apply_updates(weights, updates)
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * np.asarray(weights["w"])
    np.testing.assert_allclose(average_of(state)["w"], expected, rtol=1e-5)
    assert average_of(optax.sgd(0.1).init(weights)) is None


def test_the_average_is_float32_from_the_first_step_on():
    """In bfloat16 a thousandth of a step would round to none, and a dtype that changes is another program."""
    average = keep_average(0.999)
    weights, still = {"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.zeros(2, jnp.bfloat16)}
    begun = average.init(weights)
    state = average.update(still, begun._replace(count=jnp.int32(10**6)), {"w": weights["w"] + 1})[1]
    assert average_of(begun)["w"].dtype == average_of(state)["w"].dtype == jnp.float32
    np.testing.assert_allclose(average_of(state)["w"], 1.001, rtol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="drop_label"):
        Diffusion(SHAPE, drop_label=1.0)
    with pytest.raises(UserError, match="patches of 3"):
        PictureShape(4, 8, 1, patch=3)
    with pytest.raises(UserError, match="classes must be > 0"):
        PictureShape(4, 8, 1, patch=4, classes=0)
    for wrong in ({"frames": 3, "tube": 2}, {"frames": 4, "tube": 2, "given": 3}, {"frames": 2, "given": 2}):
        with pytest.raises(UserError, match="cannot be cut into tubes"):
            PictureShape(4, 8, 1, patch=4, **wrong)
    with pytest.raises(UserError, match="levels must be 2 or more"):
        PictureShape(4, 8, 1, patch=4, levels=(1, 3))
    with pytest.raises(UserError, match="reconstruction must be > 0"):
        Diffusion(SHAPE, reconstruction=0.0)
    with pytest.raises(UserError, match=r"Diffusion\.predict must be"):
        Diffusion(SHAPE, predict="image")
    with pytest.raises(UserError, match="positions"):
        build_model(dataclasses.replace(SMALL, positions="learned"), NEEDS)

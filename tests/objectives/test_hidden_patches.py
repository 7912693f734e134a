"""Hidden patches: how many and which, at all times of a film the same; what is to be said of them; windows of films."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pretrain.core.errors import UserError
from pretrain.core.images import encode
from pretrain.core.rng import host_rng
from pretrain.core.video import chosen, cut, to_patches
from pretrain.objectives.films import Films
from pretrain.objectives.hidden_features import HiddenFeatures
from pretrain.objectives.hidden_patches import hidden_at_random, hidden_blocks
from pretrain.objectives.masked_pictures import MaskedPictures
from pretrain.objectives.pictures import Pictures

PICTURES = Pictures(image_size=8, channels=1, area=(1.0, 1.0), flip=False, patch_size=2)
FILMS = Films(frames=4, stride=2, height=4, width=6, channels=1, patch_size=2, tube=2)


def pixels(*shape: int) -> np.ndarray:
    return host_rng(0, "pixels", *shape).integers(0, 256, shape, np.uint8)


def batch_of(objective, *records) -> dict[str, np.ndarray]:
    """A finished batch of these records."""
    rows = [objective.prepare(record, host_rng(0, "row", number))["row"] for number, record in enumerate(records)]
    return objective.finish({"row": np.stack(rows), "segment_ids": np.ones((len(rows), 1), np.int32)}, host_rng(0, "x"))


@pytest.mark.parametrize("draw", [hidden_at_random, hidden_blocks])
@pytest.mark.parametrize("count", [1, 13, 34])
def test_as_many_are_hidden_of_every_picture(draw, count):
    found = np.array([draw(5, 7, count, host_rng(seed, "hidden")) for seed in range(40)])
    assert found.shape == (40, 35) and (found.sum(1) == count).all()
    assert len(np.unique(found, axis=0)) > 10


def test_at_random_every_place_is_as_likely_and_blocks_hang_together():
    def drawn(draw):
        return np.array([draw(8, 8, 32, host_rng(seed, "many")) for seed in range(400)]).reshape(-1, 8, 8)

    scattered, blocks = drawn(hidden_at_random), drawn(hidden_blocks)
    assert np.abs(scattered.mean(0) - 0.5).max() < 0.12  # 0.025 is a standard deviation
    beside = lambda x: float((x[:, :, 1:] == x[:, :, :-1]).mean())  # noqa: E731
    assert abs(beside(scattered) - 0.5) < 0.03 and beside(blocks) > 0.75


@pytest.mark.parametrize("blocks", [False, True])
def test_seen_and_hidden_are_all_patches_and_of_a_film_the_same_at_all_times(blocks):
    film = {"frames": pixels(9, 4, 6, 1)}
    objective = MaskedPictures(FILMS, ratio=0.6, blocks=blocks)
    batch = batch_of(objective, *[film] * 5)
    assert batch["seen"].shape == (5, 2 * 2) and batch["hidden"].shape == (5, 2 * 4) and objective.encoded_length == 4
    both = np.sort(np.concatenate([batch["seen"], batch["hidden"]], axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(12), (5, 1)))
    np.testing.assert_array_equal(batch["hidden"][:, :4] + 6, batch["hidden"][:, 4:])  # 2 x 3 places
    assert len(np.unique(batch["hidden"], axis=0)) > 1


@pytest.mark.parametrize("blocks", [False, True])
def test_of_a_film_other_places_may_be_hidden_at_each_time_and_as_many(blocks):
    objective = MaskedPictures(FILMS, ratio=0.6, blocks=blocks, at_all_times=False)
    batch = batch_of(objective, *[{"frames": pixels(9, 4, 6, 1)}] * 9)
    both = np.sort(np.concatenate([batch["seen"], batch["hidden"]], axis=1), axis=1)
    np.testing.assert_array_equal(both, np.tile(np.arange(12), (9, 1)))
    first, then = batch["hidden"][:, :4], batch["hidden"][:, 4:]
    assert (first < 6).all() and (then >= 6).all()  # 2 x 3 places at each time
    assert (np.any(first + 6 != then, axis=1)).sum() > 4


def test_cutting_films_is_cutting_their_frames():
    frames = jnp.asarray(pixels(2, 4, 4, 6, 3))
    tubes = cut(frames, 2, tube=2)
    assert tubes.shape == (2, 2 * 6, 2 * 12) and tubes.dtype == jnp.uint8
    by_frame = np.asarray(to_patches(frames, 2)).reshape(2, 2, 2, 6, 12)  # time, frame of the tube, place
    np.testing.assert_allclose(tubes / 127.5 - 1, by_frame.transpose(0, 1, 3, 2, 4).reshape(2, 12, 24), atol=1e-6)
    np.testing.assert_array_equal(cut(frames[:, 0], 2), cut(frames[:, :1], 2))


def test_choosing_beyond_the_end_gives_numbers():
    x = jnp.arange(6.0).reshape(1, 3, 2)
    np.testing.assert_array_equal(chosen(x, jnp.array([[2, 0, 9]]))[0], [[4, 5], [0, 1], [4, 5]])


@pytest.mark.parametrize("normalized", [False, True])
def test_what_should_be_said_is_the_pixels_that_are_hidden(normalized):
    objective = MaskedPictures(PICTURES, ratio=0.75, normalized=normalized)
    batch = batch_of(objective, {"image": pixels(8, 8, 1)})
    wanted = np.asarray(objective.wanted(batch))[0]
    assert wanted.shape == (12, 4)
    for number, found in zip(batch["hidden"][0], wanted, strict=True):
        row, column = divmod(number, 4)
        own = batch["images"][0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, 0].reshape(-1) / 127.5 - 1
        expected = (own - own.mean()) / np.sqrt(own.var(ddof=1) + 1e-6) if normalized else own
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_loss_is_the_mean_over_usable_pictures():
    objective = MaskedPictures(PICTURES, normalized=False)
    good, broken = {"image": pixels(8, 8, 1)}, {"image": np.frombuffer(encode(pixels(8, 8, 1)), np.uint8)[:20]}
    batch = batch_of(objective, good, broken, {"image": pixels(9, 8, 1)})
    assert batch["loss_weights"].tolist() == [1, 0, 1]
    said = objective.wanted(batch) + jnp.array([0.5, 7.0, 0.1])[:, None, None]
    terms, metrics = objective.loss(said, batch)
    np.testing.assert_allclose((terms["pixels"].sum, terms["pixels"].weight), (0.25 + 0.01, 2), rtol=1e-5)
    np.testing.assert_allclose(metrics["unusable"], (1, 3))


def test_the_error_of_features_is_square_nearby_and_linear_far_away():
    objective = HiddenFeatures(PICTURES)
    batch = batch_of(objective, *[{"image": pixels(8, 8, 1)}] * 2)
    alike, wanted = jnp.zeros((1, 12, 3)), jnp.asarray(host_rng(0, "wanted").normal(size=(1, 12, 3)), jnp.float32)
    wanted = jnp.concatenate([alike, wanted])
    terms, metrics = objective.loss({"said": wanted + jnp.array([0.5, 3.0])[:, None, None], "wanted": wanted}, batch)
    np.testing.assert_allclose(terms["features"].sum / terms["features"].weight, (0.125 + 2.5) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["spread"][0], np.asarray(wanted[1]).std(0).mean(), rtol=1e-5)


def test_a_window_of_a_film_starts_anywhere_and_leaves_frames_out():
    film = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 6, 1), np.uint8)
    starts = {int(FILMS.view(film, host_rng(seed, "start"))["frames"][0, 0, 0, 0]) for seed in range(30)}
    assert starts == {0, 1, 2}
    assert FILMS.view(film[:7], host_rng(0, "x"))["frames"][:, 0, 0, 0].tolist() == [0, 2, 4, 6]
    assert FILMS.whole(film)["frames"].shape == FILMS.spec()["frames"].shape


def test_half_of_the_windows_are_mirrored_where_asked():
    films, film = dataclasses.replace(FILMS, flip=True), pixels(7, 4, 6, 1)
    found = [films.view(film, host_rng(seed, "flip"))["frames"] for seed in range(40)]
    mirrored = sum(np.array_equal(each, film[::2, :, ::-1]) for each in found)
    assert 8 < mirrored < 32 and mirrored + sum(np.array_equal(each, film[::2]) for each in found) == 40


@pytest.mark.parametrize("shape", [(1, 4, 6, 1), (6, 4, 6, 1), (0, 4, 6, 1), (9, 4, 5, 1), (9, 4, 6), (9,)])
def test_films_too_short_or_of_another_size_are_counted(shape):
    batch = batch_of(MaskedPictures(FILMS, ratio=0.5), {"frames": pixels(*shape)})
    assert batch["unusable"].tolist() == [1] and batch["loss_weights"].tolist() == [0]


def test_what_cannot_be_is_one_line():
    for ratio in (0.0, 0.99, 1.0, -1.0):
        with pytest.raises(UserError, match=r"MaskedPictures\.ratio = .* of 4 x 4 patches leaves none"):
            MaskedPictures(PICTURES, ratio=ratio)
    with pytest.raises(UserError, match=r"Pictures\.patches must be None"):
        MaskedPictures(Pictures(patches=6, patch_size=4))
    with pytest.raises(UserError, match=r"image_size \(9\) must be a multiple of patch_size \(2\)"):
        HiddenFeatures(dataclasses.replace(PICTURES, image_size=9))
    with pytest.raises(UserError, match="4 frames of 4 x 6 pixels cannot be cut into tubes of 3"):
        dataclasses.replace(FILMS, tube=3)
    with pytest.raises(UserError, match=r"Films\.stride must be > 0"):
        dataclasses.replace(FILMS, stride=0)
    with pytest.raises(UserError, match=r"HiddenFeatures\.momentum must be above 0 and below 1"):
        HiddenFeatures(PICTURES, momentum=1.0)

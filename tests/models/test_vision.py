"""Encoders of pictures: patches and their places, pictures of any size, pooling, and wrong sizes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, model, params

from pretrain.core.errors import UserError
from pretrain.core.objective import ModelNeeds
from pretrain.core.rng import host_rng
from pretrain.core.video import cut
from pretrain.models.build import build_model
from pretrain.models.flops import count_flops
from pretrain.models.vision import between, join, of_any_size, place, whole
from pretrain.models.vision_config import Vision

VISION = Vision(image_size=12, patch_size=4, channels=1, num_layers=1, pooling="mean")
NEEDS = ModelNeeds(architectures=("vision",))


def encoder(**changes):
    config = dataclasses.replace(CONFIG, architecture="vision", vision=dataclasses.replace(VISION, **changes))
    return model(config, NEEDS).module(params(config, NEEDS))


def pictures(height: int, width: int, count: int = 2) -> jax.Array:
    return jnp.asarray(host_rng(0, "pictures", height, width).integers(0, 256, (count, height, width, 1), np.uint8))


def test_cutting_and_joining():
    images = pictures(8, 12)
    patches = cut(images, 4)
    assert patches.shape == (2, 6, 16)
    np.testing.assert_array_equal(patches[0, 4].reshape(4, 4), images[0, 4:8, 4:8, 0])
    np.testing.assert_array_equal(join(patches, 2, 3, 1), images)


def test_places_in_the_table():
    rows, columns = place(jnp.arange(9)[None], jnp.array([[3, 3]]), 3)
    np.testing.assert_array_equal(rows[0], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    np.testing.assert_array_equal(columns[0], [0, 1, 2] * 3)
    rows, columns = place(jnp.arange(12)[None], jnp.array([[6, 2]]), 3)
    np.testing.assert_allclose(rows[0, ::2], np.linspace(-0.25, 2.25, 6))
    np.testing.assert_allclose(columns[0, :2], [0.25, 1.75])


def test_reading_between_the_entries():
    table = jnp.asarray(np.arange(9.0).reshape(3, 3, 1))  # 3 * row + column
    where = jnp.array([[0.0, 0.5, 2.0, 1.25, -1.0, 9.0]]), jnp.array([[0.0, 0.5, 2.0, 0.0, -1.0, 1.0]])
    np.testing.assert_allclose(between(table, *where)[0, :, 0], [0, 2, 8, 3.75, 0, 7])
    assert between(jnp.ones((1, 1, 2)), *where).shape == (1, 6, 2)


@pytest.mark.parametrize("changes", [{}, {"pooling": "class"}, {"pooling": "attention"}, {"positions": "sincos"}])
def test_padding_changes_nothing(changes):
    """A picture is the same by itself and as patches with padding behind them, whatever the pooling."""
    vision, images = encoder(**changes), pictures(12, 12)
    alone = vision(vision.patches({"images": images}))
    noise = jnp.full((2, 3, 16), 77, jnp.uint8)
    patches = jnp.concatenate([cut(images, 4), noise], axis=1)
    padded = vision(vision.patches({"patches": patches, "grid": jnp.array([[3, 3], [3, 3]])}))
    assert alone.shape == (2, 32)
    np.testing.assert_allclose(alone, padded, rtol=1e-5, atol=1e-6)


def test_other_sizes_interpolate_positions():
    """Trained at 12 pixels, shown 24: the table is read between its entries, and parameters keep their shapes."""
    vision = encoder()
    assert vision.position_embedding[...].shape == (9, 32)
    large = whole(pictures(24, 24), VISION)
    found = vision.positions(large)[0].reshape(6, 6, 32)
    table = vision.position_embedding[...].reshape(3, 3, 32)
    np.testing.assert_allclose(found[0, 0], table[0, 0], rtol=1e-6)
    np.testing.assert_allclose(found[5, 5], table[2, 2], rtol=1e-6)
    np.testing.assert_allclose(
        found[1, 1], (9 * table[0, 0] + 3 * (table[0, 1] + table[1, 0]) + table[1, 1]) / 16, rtol=1e-5
    )
    assert vision(large).shape == (2, 32)


def test_shapes_of_one_batch_differ():
    vision = encoder()
    images = [pictures(8, 16, 1), pictures(16, 4, 1)]
    patches = jnp.zeros((2, 8, 16), jnp.uint8)
    for row, image in enumerate(images):
        found = cut(image, 4)[0]
        patches = patches.at[row, : len(found)].set(found)
    together = vision(of_any_size(patches, jnp.array([[2, 4], [4, 1]]), VISION))
    for row, image in enumerate(images):
        np.testing.assert_allclose(together[row], vision(whole(image, VISION))[0], rtol=1e-5, atol=1e-6)


def test_sizes_that_do_not_fit_are_one_line():
    with pytest.raises(UserError, match="multiple of patch_size"):
        Vision(image_size=30, patch_size=16)
    with pytest.raises(UserError, match="10 x 12 pixels and 1 channels cannot be cut"):
        whole(pictures(10, 12), VISION)
    with pytest.raises(UserError, match=r"needs TransformerConfig.vision = @Vision\(\)"):
        dataclasses.replace(CONFIG, architecture="two_towers")


def test_flops_of_two_towers_are_those_of_both():
    config = dataclasses.replace(CONFIG, architecture="two_towers", vision=VISION)
    found = count_flops(config, 16)
    alone = count_flops(dataclasses.replace(config, architecture="vision"), 16)
    text = count_flops(dataclasses.replace(CONFIG, architecture="decoder"), 16)
    assert found.mlp == pytest.approx(alone.mlp + text.mlp, abs=1)
    assert found.attention_scores == pytest.approx(alone.attention_scores + text.attention_scores, abs=1)
    assert found.head == alone.head == 2 * 16 * 32 * 9 // 16


def test_initial_values_of_clip():
    """As transformers' CLIPModel begins: `modeling_clip.py`, `_init_weights`, with a factor of 1."""
    wide = dataclasses.replace(
        CONFIG, architecture="vision", embed_dim=64, num_heads=4, kv_heads=None, mlp_dim=256, activation="gelu",
        vision=dataclasses.replace(VISION, num_layers=8), init_rule="clip", embedding_init_scale=0.02,
    )  # fmt: skip
    encoder = jax.jit(build_model(wide, NEEDS).init)(jax.random.key(0))
    layers, inner, plain = encoder["stack"]["blocks"], (2 * 64 * 8) ** -0.5, 64**-0.5
    wanted = {("attention", "query"): inner, ("attention", "key"): inner, ("attention", "value"): inner,
              ("attention", "out"): plain, ("mlp", "up"): 128**-0.5, ("mlp", "down"): inner}  # fmt: skip
    for (part, name), scale in wanted.items():
        assert layers[part][name]["kernel"].std() == pytest.approx(scale, rel=0.05), (part, name)
    assert encoder["patch_embedding"]["kernel"].std() == pytest.approx(0.02, rel=0.1)
    with pytest.raises(UserError, match="init_rule = 'clip' has sizes of its own"):
        dataclasses.replace(wide, init_scale=0.02)

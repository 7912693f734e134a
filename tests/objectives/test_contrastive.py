"""Contrastive losses by hand, on any number of devices and in parts; captions, views and frozen towers."""

import dataclasses

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contrastive_cases import BATCH, LOSSES, SPACE, checked

from pretrain.core.errors import UserError
from pretrain.core.images import encode
from pretrain.core.rng import host_rng
from pretrain.core.trees import named_leaves
from pretrain.objectives.contrastive import ImageText, SimCLR
from pretrain.objectives.examples import padded_text
from pretrain.objectives.pictures import Pictures, grid_of
from pretrain.objectives.similarity import info_nce, number_of_parts, sigmoid_pairs
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule


@pytest.mark.parametrize("rows", [BATCH, 3])
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_are_those_of_the_whole_matrix(kind, rows):
    ours, by_hand = checked(kind, rows)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-5)


@pytest.mark.parametrize("loss", [info_nce, sigmoid_pairs])
def test_keys_that_are_all_alike_find_nothing(loss):
    """A collapsed model scores what guessing does: of equal logits one counts, not every one."""
    same = jnp.ones((BATCH, SPACE))
    found = loss(same, same, jnp.ones(BATCH), rows=4)
    assert float(found.first) == 1


def test_equal_on_any_number_of_devices_and_in_parts(eight_devices):
    report = eight_devices["contrastive"]
    assert len(report) == 3 * 4 * 2
    for name, found in report.items():
        assert found["loss"] < 2e-6 and found["slopes"] < 2e-5 and found["first"] == 0, (name, found)


def test_no_device_holds_the_matrix_of_all_pairs(eight_devices):
    """In parts, the largest float32 array of the compiled program is a part's logits on one device, or the keys."""
    for name, found in eight_devices["contrastive"].items():
        if name.endswith(" 8 rows"):
            keys = BATCH * (2 if "others" in name else 1)
            devices = int(name.split(", ")[1].split()[0])
            assert found["largest"] <= max(8 * keys // devices, keys * SPACE), (name, found)


def test_parts_divide_the_batch():
    assert [number_of_parts(32, rows) for rows in (64, 32, 31, 8, 3, 0)] == [1, 1, 2, 4, 16, 32]
    assert number_of_parts(7, 3) == 7


def test_captions_keep_their_end():
    np.testing.assert_array_equal(padded_text(np.array([5, 6, 1]), 4)["tokens"], [5, 6, 1, 0])
    np.testing.assert_array_equal(padded_text(np.array([5, 6, 7, 8, 1]), 4)["tokens"], [5, 6, 7, 1])
    np.testing.assert_array_equal(padded_text(np.array([5, 1]), 4)["segment_ids"], [1, 1, 0, 0])
    with pytest.raises(ValueError, match="no text"):
        padded_text(np.array([1]), 4)


def test_a_frozen_tower_stays_and_the_other_learns():
    objective = ImageText(pictures=conformance.PICTURES, text_length=16, frozen="image").bind(conformance.VOCABULARY)
    params, model = conformance.params_of(objective), conformance.model_of(objective)
    grads = conformance.loss_and_gradients(objective, params, conformance.batch(objective))[1]
    optimizer, _ = build_optimizer(Optimizer(frozen=("image",)), Schedule(warmup_steps=0), 10, model.logical_axes())
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    after = named_leaves(optax.apply_updates(params, updates))
    for name, before in named_leaves(params).items():
        assert np.array_equal(before, after[name]) == name.startswith("image"), name
    with pytest.raises(UserError, match="no parameter's name begins"):
        build_optimizer(Optimizer(frozen=("picture/",)), Schedule(), 10, model.logical_axes())


def stored(height: int, width: int) -> np.ndarray:
    pixels = host_rng(0, "stored", height, width).integers(0, 256, (height, width, 3), np.uint8)
    return np.frombuffer(encode(pixels), np.uint8)


def test_views_differ_and_are_reproducible():
    objective = SimCLR(pictures=Pictures(image_size=8, colours=1.0, grey=0.2, patch_size=4))
    record = {"image": stored(20, 30)}
    first, again, other = (objective.example(record, host_rng(seed, "views"))["views"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first, other)
    whole = objective.pictures.whole(record["image"])["images"]
    assert whole.shape == (8, 8, 3) and whole.dtype == np.uint8


@pytest.mark.parametrize("height, width", [(4, 4), (16, 16), (20, 5), (5, 300), (1000, 700), (1, 1)])
def test_pictures_keep_their_shape_in_patches(height, width):
    pictures = Pictures(patches=12, patch_size=4, flip=False)
    found = pictures.whole(stored(height, width))
    rows, columns = found["grid"]
    assert (rows, columns) == grid_of(height, width, 12, 4) and 1 <= rows * columns <= 12
    assert not found["patches"][rows * columns :].any()
    if min(height, width) >= 8 and max(height, width) / min(height, width) < 2:
        assert abs(np.log(rows / columns) - np.log(height / width)) < np.log(2)


def test_wrong_settings_are_one_line():
    with pytest.raises(UserError, match=r"Pictures.area is a share"):
        Pictures(area=(0.5, 1.5))
    with pytest.raises(UserError, match="one size"):
        SimCLR(pictures=Pictures(patches=4))
    with pytest.raises(UserError, match="must be one of 'softmax', 'sigmoid'"):
        ImageText(loss_kind="hinge")


def test_pictures_and_model_must_agree():
    objective = ImageText(pictures=dataclasses.replace(conformance.PICTURES, image_size=10), text_length=16)
    arrays = {name: spec.zeros() for name, spec in objective.batch_spec(4, 16).items()}
    builder = conformance.builder(objective)
    with pytest.raises(UserError, match="10 x 10 pixels"):
        jax.eval_shape(builder.gradients, conformance.model_of(objective).shapes, arrays)

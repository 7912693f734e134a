"""Encoders that learn by what is hidden: the hidden stays unseen, places are told, and the copy follows the encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, model, params

from pretrain.core.errors import UserError
from pretrain.core.objective import ModelNeeds
from pretrain.core.rng import host_rng
from pretrain.core.trees import named_leaves
from pretrain.models.build import build_model
from pretrain.models.vision_config import Predictor, Vision
from pretrain.objectives.hidden_features import HiddenFeatures
from pretrain.objectives.pictures import Pictures
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.train.state import init_state
from pretrain.train.step import StepBuilder

NARROW = Predictor(num_layers=1, embed_dim=16, num_heads=2, mlp_dim=32)
VISION = Vision(image_size=8, patch_size=4, channels=1, num_layers=1, pooling="class", predictor=NARROW)
FILM = dataclasses.replace(VISION, frames=4, tube=2, pooling="mean", positions="sincos")
CONFIGS = {
    name: dataclasses.replace(CONFIG, architecture="vision", vision=vision)
    for name, vision in {"pictures": VISION, "films": FILM}.items()
}
PIXELS = ModelNeeds(("vision",), backbone="masked_autoencoder")
FEATURES = ModelNeeds(("vision",), backbone="joint_embedding", momentum=0.75)


def shown(kind: str) -> dict[str, jax.Array]:
    shape, name = ((2, 8, 8, 1), "images") if kind == "pictures" else ((2, 4, 8, 8, 1), "frames")
    return {name: jnp.asarray(host_rng(0, kind).integers(0, 256, shape, np.uint8))}


def numbers(kind: str) -> tuple[jax.Array, jax.Array]:
    """Seen and hidden patches of two rows."""
    seen, hidden = ([[0, 3], [2, 1]], [[1, 2], [0, 3]]) if kind == "pictures" else ([[0, 5, 2, 4]], [[1, 3, 6, 7]])
    return tuple(jnp.broadcast_to(jnp.array(each), (2, len(each[0]))) for each in (seen, hidden))


@pytest.fixture(scope="module", params=CONFIGS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def paint(kind):
    """Compiled: pictures, seen, hidden -> what a masked autoencoder says."""
    made, values = model(CONFIGS[kind], PIXELS), params(CONFIGS[kind], PIXELS)
    return jax.jit(lambda *given: made.module(values)(*given))


def changed(kind: str, pictures: dict[str, jax.Array], patch: int) -> dict[str, jax.Array]:
    """With other pixels in one patch of the first row."""
    (name, x), (time, place) = *pictures.items(), divmod(patch, 4)
    top, left = 4 * (place // 2), 4 * (place % 2)
    where = (0, slice(top, top + 4), slice(left, left + 4))
    where = where if kind == "pictures" else (0, slice(2 * time, 2 * time + 2), *where[1:])
    return {name: x.at[where].set(255 - x[where])}


def test_pixels_of_hidden_patches_are_not_looked_at(kind, paint):
    pictures, (seen, hidden) = shown(kind), numbers(kind)
    said = paint(pictures, seen, hidden)
    assert said.shape == (*hidden.shape, 16 if kind == "pictures" else 32) and said.dtype == jnp.float32
    for patch in hidden[0].tolist():
        np.testing.assert_array_equal(paint(changed(kind, pictures, patch), seen, hidden), said)
    for patch in seen[0].tolist():
        other = paint(changed(kind, pictures, patch), seen, hidden)
        assert jnp.abs(other[0] - said[0]).max() > 1e-3, patch
        np.testing.assert_array_equal(other[1], said[1])


def test_the_order_in_which_patches_are_told_does_not_matter_but_their_places_do(kind, paint):
    pictures, (seen, hidden) = shown(kind), numbers(kind)
    said = paint(pictures, seen, hidden)
    np.testing.assert_allclose(paint(pictures, seen[:, ::-1], hidden[:, ::-1])[:, ::-1], said, atol=1e-5)
    assert jnp.abs(said[:, 0] - said[:, 1]).max() > 1e-3


def test_an_encoder_of_all_patches_is_the_plain_encoder(kind):
    module = model(CONFIGS[kind], PIXELS).module(params(CONFIGS[kind], PIXELS)).encoder
    patches = module.patches(shown(kind))
    all_of_them = jnp.broadcast_to(jnp.arange(patches.values_BLP.shape[1]), patches.values_BLP.shape[:2])
    np.testing.assert_allclose(module(patches.at(all_of_them)), module(patches), atol=1e-5)


def test_times_of_a_film_are_told_apart():
    module = model(CONFIGS["films"], PIXELS).module(params(CONFIGS["films"], PIXELS)).encoder
    frames = shown("films")["frames"]
    there, back = (
        module(module.patches({"frames": x})) for x in (frames, jnp.concatenate([frames[:, 2:], frames[:, :2]], 1))
    )
    assert jnp.abs(there - back).max() > 1e-3


def test_a_copy_begins_as_the_encoder_and_says_what_is_standard():
    made, (seen, hidden) = build_model(CONFIGS["pictures"], FEATURES), numbers("pictures")
    values = jax.jit(made.init)(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, values["encoder"], values["target"])
    assert made.untrained == ("target/",) and model(CONFIGS["pictures"], PIXELS).untrained == ()
    look = jax.jit(lambda values, pictures: made.module(values)(pictures, seen, hidden))
    said, wanted = look(values, shown("pictures"))
    assert said.shape == wanted.shape == (2, 2, 32)
    np.testing.assert_allclose(wanted.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(wanted.std(-1), 1, atol=1e-2)
    hidden_changed = look(values, changed("pictures", shown("pictures"), int(hidden[0, 0])))
    np.testing.assert_array_equal(hidden_changed[0], said)  # what is said is of the seen alone
    assert jnp.abs(hidden_changed[1][0] - wanted[0]).max() > 1e-3  # what is wanted is of all


@pytest.mark.parametrize("state", ["float32", "int8"])
def test_a_step_moves_the_copy_by_its_momentum_and_nothing_else_does(state):
    """Neither a gradient nor weight decay; and it has no moments."""
    pictures = Pictures(image_size=8, channels=1, patch_size=4, area=(1, 1), flip=False)
    objective = HiddenFeatures(pictures, ratio=0.5, momentum=0.75)
    made = model(CONFIGS["pictures"], objective.model_needs)
    optimizer, rate = build_optimizer(
        Optimizer(weight_decay=0.5, state=state), Schedule("constant", 0.1, 0), 10, made.logical_axes(),
        untrained=made.untrained,
    )  # fmt: skip
    step = jax.jit(StepBuilder(made, objective, optimizer, rate).train)
    rows = [objective.example({"image": np.asarray(x)}, host_rng(0, "row")) for x in shown("pictures")["images"]]
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
    batch |= {"loss_weights": jnp.ones(2), "unusable": jnp.zeros(2)}
    before = jax.jit(lambda: init_state(made, optimizer, 0))()
    moments = [x for x in jax.tree.leaves(before.opt_state) if x.ndim]
    assert not any("target" in name for name in named_leaves(before.opt_state)) and moments
    after, metrics = step(before, batch)
    target, encoder = named_leaves(after.params["target"]), named_leaves(after.params["encoder"])
    for name, old in named_leaves(before.params["target"]).items():
        np.testing.assert_allclose(target[name], 0.75 * old + 0.25 * encoder[name], rtol=1e-6, atol=1e-7, err_msg=name)
        assert not np.array_equal(encoder[name], old), name
    assert np.isfinite(metrics["loss"]) and 0 < metrics["spread"] <= 1.1


def test_what_does_not_fit_is_one_line():
    def build(needs=PIXELS, config=CONFIGS["pictures"], **vision):
        return build_model(dataclasses.replace(config, vision=dataclasses.replace(config.vision, **vision)), needs)

    with pytest.raises(UserError, match=r"nothing would train attention pooling: set Vision\.pooling"):
        build(pooling="attention")
    with pytest.raises(UserError, match="would stand still in bfloat16"):
        build(FEATURES, dataclasses.replace(CONFIGS["pictures"], param_dtype="bfloat16"))
    with pytest.raises(UserError, match="must be a multiple of 4 and of num_heads"):
        Predictor(embed_dim=30, num_heads=4)
    with pytest.raises(UserError, match=r"Vision\.frames \(3\) must be a multiple of tube \(2\)"):
        dataclasses.replace(FILM, frames=3)
    module = build().module(params(CONFIGS["pictures"], PIXELS))
    with pytest.raises(UserError, match="the objective has 3 patches of a picture and the model 4"):
        module(shown("pictures"), jnp.zeros((2, 1), jnp.int32), jnp.zeros((2, 2), jnp.int32))
    with pytest.raises(UserError, match=r"cannot be cut into tubes of 1: Films and Vision"):
        module(shown("films"), *numbers("films"))

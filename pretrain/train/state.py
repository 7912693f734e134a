"""Everything a step needs and leaves behind, as one pytree, and its layout on the mesh."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from pretrain.core.rng import device_key
from pretrain.core.trees import named_leaves
from pretrain.models.functional import FunctionalModel, Params
from pretrain.sharding.placement import replicated, tree_shardings
from pretrain.train.control import Control


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run.

    Attributes:
        step: int32 scalar, steps done.
        params: nested dict of parameters.
        opt_state: optax state.
        rng: uint32 key data; a step's own key is this one with the step folded in.
        control: scalars that steer the updates, see `control`; empty for most runs.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    rng: jax.Array
    control: Control = dataclasses.field(default_factory=dict)


def init_state(
    model: FunctionalModel, optimizer: optax.GradientTransformation, seed: int, control: Callable[[], Control] = dict
) -> TrainState:
    """A fresh state; traceable."""
    params = model.init(device_key(seed, "init"))
    rng = jax.random.key_data(device_key(seed, "train"))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), rng, control())


def state_shardings(
    model: FunctionalModel,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    seed: int,
    control: Callable[[], Control] = dict,
) -> TrainState:
    """A tree of shardings like the state: optimizer moments are laid out as the parameters they belong to."""
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, seed, control))
    params = tree_shardings(model.logical_axes(), model.shapes, mesh)
    by_name = named_leaves(params)

    def of_moment(path, leaf):
        for start in range(len(path)):  # a moment's path ends with its parameter's path
            name = "/".join(str(getattr(part, "key", "")) for part in path[start:])
            if name in by_name:
                return by_name[name]
        return replicated(mesh)

    opt_state = jax.tree_util.tree_map_with_path(of_moment, shapes.opt_state)
    steering = jax.tree.map(lambda _: replicated(mesh), shapes.control)
    return TrainState(replicated(mesh), params, opt_state, replicated(mesh), steering)

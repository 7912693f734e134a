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
from pretrain.sharding.parallelism import Parallelism
from pretrain.sharding.placement import replicated, tree_shardings
from pretrain.sharding.rules import named_sharding
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
    use: Parallelism | None = None,
) -> TrainState:
    """A tree of shardings like the state: optimizer moments are split by the logical axes of their parameters.

    `use` says whether fsdp splits parameters too, and where moments wait; gin's by default.
    """
    use = use or Parallelism()
    shapes = jax.eval_shape(lambda: init_state(model, optimizer, seed, control))
    axes = model.logical_axes()
    params = tree_shardings(axes, model.shapes, mesh, () if use.zero == 3 else ("fsdp",))
    axes_by_name = named_leaves(axes, is_leaf=lambda node: isinstance(node, tuple))
    memory = "pinned_host" if use.offload_optimizer else None

    def of_moment(path, leaf):
        keys = [str(part.key) if hasattr(part, "key") else "" for part in path]
        for start in range(len(path)):  # a moment's path ends with its parameter's, or goes on with parts of the moment
            name = "/".join(keys[start:]).rstrip("/")
            if len(axes_by_name.get(name, ())) == leaf.ndim > 0:
                return named_sharding(axes_by_name[name], leaf.shape, mesh).with_memory_kind(memory)
        return replicated(mesh)

    opt_state = jax.tree_util.tree_map_with_path(of_moment, shapes.opt_state)
    steering = jax.tree.map(lambda _: replicated(mesh), shapes.control)
    return TrainState(replicated(mesh), params, opt_state, replicated(mesh), steering)

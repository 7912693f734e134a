"""Expert parallelism: tokens travel to the devices that hold their experts, and the results travel back.

The all-to-all of GShard (Lepikhin et al. 2020) without a limit on an expert's tokens: a buffer holds what one device
could send to one other at most, which is all it has. Sorting and products see one device's tokens alone, so the same
function serves a mesh without an expert axis, where nothing travels.

Axes: B batch · L length · E experts · K experts of a token · D embed · T = B L K of one device ·
W devices that share the experts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pretrain.core.errors import check
from pretrain.sharding.rules import RULES, current_mesh, partition_spec, shard_map, ways_of

AXIS = "expert"
TOKEN_AXES = {*RULES["batch"], *RULES["length"]}
# (matrices of some experts, tokens in the order of these experts, which expert each has) -> their results. What
# stands at the expert after the last one is no token: what comes of it is not looked at.
Experts = Callable[[Any, jax.Array, jax.Array], jax.Array]


def best_experts(scores_BLE: jax.Array, count: int) -> jax.Array:
    """The experts with a token's greatest scores, best first: int32 [batch, length, count].

    Found where the token is: XLA would otherwise gather the scores of all tokens.
    """
    choose = lambda scores_BLE: jax.lax.top_k(scores_BLE, count)[1]  # noqa: E731
    mesh, scores_BLE = current_mesh(), jax.lax.stop_gradient(scores_BLE)
    if mesh is None or mesh.size == 1:
        return choose(scores_BLE)
    tokens = partition_spec(("batch", "length", None), scores_BLE.shape, mesh)
    return shard_map(choose, in_specs=(tokens,), out_specs=tokens, axes=TOKEN_AXES)(scores_BLE)


def through_experts(run: Experts, kernels: Any, x_BLD: jax.Array, chosen_BLK: jax.Array) -> jax.Array:
    """What each of a token's experts makes of it, [batch, length, K, embed].

    Args:
        run: the experts.
        kernels: tree of their matrices, [experts, ...].
        x_BLD: tokens.
        chosen_BLK: int32, their experts.

    Raises:
        UserError: the experts cannot be divided over the mesh.
    """
    ways, experts, mesh = ways_of(AXIS), len(jax.tree.leaves(kernels)[0]), current_mesh()
    check(
        experts % ways == 0,
        f"{experts} experts cannot be divided over MeshConfig.expert ({ways}): make it a divisor",
    )
    on_device = functools.partial(_on_device, run, ways, experts // ways)
    if mesh is None or mesh.size == 1:
        return on_device(kernels, x_BLD, chosen_BLK)
    tokens = partition_spec(("batch", "length", None), x_BLD.shape, mesh)
    return shard_map(
        on_device,
        in_specs=(PartitionSpec(AXIS), tokens, tokens),
        out_specs=PartitionSpec(*tokens, None),
        axes=TOKEN_AXES,
    )(kernels, x_BLD, chosen_BLK)


def _on_device(run: Experts, ways: int, held: int, kernels: Any, x_BLD, chosen_BLK) -> jax.Array:
    """The same for one device's tokens, when it holds the matrices of `held` experts."""
    expert_T = chosen_BLK.reshape(-1)
    order_T = jnp.argsort(expert_T, stable=True)
    x_TD, expert_T = x_BLD.reshape(-1, x_BLD.shape[-1])[order_T // chosen_BLK.shape[-1]], expert_T[order_T]
    y_TD = run(kernels, x_TD, expert_T) if ways == 1 else _abroad(run, ways, held, kernels, x_TD, expert_T)
    return y_TD[jnp.argsort(order_T)].reshape(*chosen_BLK.shape, -1)


def _abroad(run: Experts, ways: int, held: int, kernels: Any, x_TD, expert_T) -> jax.Array:
    """Sends tokens, which are in the order of all experts, to where these are."""
    (tokens, embed), holder_T = x_TD.shape, expert_T // held
    first_W = jnp.searchsorted(holder_T, jnp.arange(ways))
    seat = holder_T, jnp.arange(tokens) - first_W[holder_T]
    travel = functools.partial(jax.lax.all_to_all, axis_name=AXIS, split_axis=0, concat_axis=0)
    x_WTD = travel(jnp.zeros((ways, tokens, embed), x_TD.dtype).at[seat].set(x_TD))
    expert_WT = travel(jnp.full((ways, tokens), held, expert_T.dtype).at[seat].set(expert_T % held))
    order = jnp.argsort(expert_WT.reshape(-1), stable=True)
    y = run(kernels, x_WTD.reshape(-1, embed)[order], expert_WT.reshape(-1)[order])
    return travel(y[jnp.argsort(order)].reshape(ways, tokens, -1))[seat]

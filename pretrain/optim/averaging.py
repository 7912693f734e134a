"""An average of the weights over the last steps, kept beside them (Polyak and Juditsky 1992)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageState(NamedTuple):
    """What the average needs: steps taken, and the averaged parameters in float32, whatever their own dtype."""

    count: jax.Array
    average: Any


def keep_average(decay: float) -> optax.GradientTransformation:
    """The last link of a chain: leaves updates as they are, and averages the parameters that they lead to.

    Over the first steps the average is shorter: the decay is at most (1 + n) / (10 + n), so that it forgets where it
    began.

    Args:
        decay: share that stays of the average at each step; 0.999 is a memory of 1,000 steps.
    """

    def init(params: Any) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(lambda p: p.astype(jnp.float32), params))

    def update(updates: Any, state: AverageState, params: Any) -> tuple[Any, AverageState]:
        now = jnp.minimum(decay, (1.0 + state.count) / (10.0 + state.count))
        moved = jax.tree.map(
            lambda old, p, u: now * old + (1 - now) * (p + u).astype(old.dtype), state.average, params, updates
        )
        return updates, AverageState(state.count + 1, moved)

    return optax.GradientTransformation(init, update)


def average_of(opt_state: Any) -> Any | None:
    """The averaged parameters in an optimizer's state, or None where none are kept."""
    is_average = lambda node: isinstance(node, AverageState)  # noqa: E731
    found = [node for node in jax.tree.leaves(opt_state, is_leaf=is_average) if is_average(node)]
    return found[0].average if found else None

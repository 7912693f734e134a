"""A module as pure functions of a parameter tree: what jit, scan, donation and ahead-of-time lowering want.

Outside a trace, flax NNX modules are the surface; inside the training step everything is a nested dict of arrays.
"""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from flax.nnx import traversals

from pretrain.core.objective import Metrics

Params = dict[str, Any]


class FunctionalModel:
    """Shapes, logical axes, initial values and method calls of a module, all on plain parameter dicts.

    Args:
        build: makes the module from `rngs`, e.g. `lambda rngs: Transformer(config, rngs=rngs)`.

    Attributes:
        shapes: of the parameters.
        untrained: beginnings of the names of parameters that `advance` alone moves.
    """

    def __init__(self, build: Callable[[nnx.Rngs], nnx.Module]):
        self._build = build
        module = nnx.eval_shape(lambda: build(nnx.Rngs(0)))
        self._graph, self._abstract = nnx.split(module)
        self.shapes: Params = nnx.to_pure_dict(self._abstract)
        self.untrained: tuple[str, ...] = getattr(module, "untrained", ())

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters. Traceable, so that a mesh can hold what one device cannot."""
        return nnx.to_pure_dict(nnx.split(self._build(nnx.Rngs(params=key)))[1])

    def logical_axes(self) -> Params:
        """The tree of axis names; parameters of a scanned stack have "layers" in front."""
        flat = {}
        for path, variable in nnx.to_flat_state(self._abstract):
            axes = variable.get_metadata()["logical_axes"]
            flat[path] = ("layers",) * (len(variable.shape) - len(axes)) + tuple(axes)
        return traversals.unflatten_mapping(flat)

    def advance(self, params: Params, metrics: Metrics) -> Params:
        """Parameters after a step, with what no gradient moves moved by what the step has counted."""
        module = self.module(params)
        if not hasattr(module, "advance"):
            return params
        module.advance(metrics)
        return nnx.to_pure_dict(nnx.split(module)[1])

    def module(self, params: Params) -> nnx.Module:
        """The module with these parameters, to call inside a trace."""
        _, state = nnx.split(nnx.merge(self._graph, self._abstract))
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state)

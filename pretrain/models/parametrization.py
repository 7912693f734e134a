"""Parametrisations under which the best learning rate of a small proxy is the best of a large model.

"mup": maximal update (Yang et al. 2022, "Tensor Programs V", table 8, for Adam): updates of hidden matrices shrink with
width and so do logits; embeddings and vectors keep their learning rate. "completep" (Dey et al. 2025) adds depth:
each residual branch counts 1 / depth. Both leave a model of the base shape as "standard" has it. Heads are meant
to grow in number, not in size, so attention scores need no factor.
"""

from typing import Any

import jax

from pretrain.models.config import TransformerConfig

WIDTH_AXES = {"embed", "mlp", "heads", "kv_heads"}  # logical axes that grow with the model


def learning_rate_scales(config: TransformerConfig, logical_axes: Any) -> Any | None:
    """A tree of factors on the learning rate like `logical_axes`, or None when all are 1.

    A matrix from width to width gets base width / width (weight decay, which multiplies the rate, stays as it is).
    """
    if config.width_ratio == 1:
        return None

    def scale(axes: tuple[str | None, ...]) -> float:
        return 1 / config.width_ratio if sum(axis in WIDTH_AXES for axis in axes) >= 2 else 1.0

    return jax.tree.map(scale, logical_axes, is_leaf=lambda node: isinstance(node, tuple))

"""The small parts of a Transformer: parameters with logical axes, projections, norms, activations."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.core.platform import platform
from pretrain.models.config import TransformerConfig
from pretrain.sharding.rules import constrain

Axes = tuple[str | None, ...]
SUMMED_TOKENS = 1 << 16  # of a part of `look_up`


def compute_dtype(config: TransformerConfig) -> jnp.dtype:
    """The dtype of matrix products: as configured; "auto" is bfloat16 on TPU and GPU, float32 on CPU."""
    if config.compute_dtype != "auto":
        return jnp.dtype(config.compute_dtype)
    return jnp.dtype("float32" if platform() == "cpu" else "bfloat16")


def param(value: jax.Array, axes: Axes) -> nnx.Param:
    """A parameter with the logical names of its axes, which `sharding.rules` lays out."""
    assert value.ndim == len(axes), (value.shape, axes)
    return nnx.Param(value, logical_axes=axes)


def contract(x: jax.Array, kernel: jax.Array, inputs: int = 1, dtype: jnp.dtype | None = None) -> jax.Array:
    """The matrix product over the last `inputs` dimensions of `x` and the first of `kernel`; result of `dtype`.

    On CPU it is written on two dimensions: XLA would otherwise transpose activations for the kernel's gradient inside
    its elementwise loops (a third of an MLP's time). On a mesh the dimensions stay apart, so that each can be split.
    """
    batch, outputs = x.shape[: x.ndim - inputs], kernel.shape[inputs:]
    if platform() == "cpu":
        rows = x.reshape(math.prod(batch), -1)
        y = jnp.dot(rows, kernel.reshape(rows.shape[1], -1), preferred_element_type=dtype)
        return y.reshape(*batch, *outputs)
    dimensions = (tuple(range(x.ndim - inputs, x.ndim)), tuple(range(inputs)))
    return jax.lax.dot_general(x, kernel, (dimensions, ((), ())), preferred_element_type=dtype)


@jax.custom_vjp
def look_up(table_VD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
    """Rows of a table, [batch, length, embed]; their gradients are summed in the table's dtype.

    For TPU the sum goes by parts of the length: its compiler sorts a sum's tokens, and needs half a minute to compile a
    sort of a million. Where the table's columns are split over chips, each adds up its own columns of all rows.
    """
    return table_VD[tokens_BL]


def _look_up(table_VD, tokens_BL):
    return table_VD[tokens_BL], (table_VD, tokens_BL)


def _add_up(saved, grad_BLD):
    table_VD, tokens_BL = saved
    batch, length = tokens_BL.shape
    parts = math.gcd(length, max(1, tokens_BL.size // SUMMED_TOKENS)) if platform() == "tpu" else 1
    add = lambda sum_VD, part: (sum_VD.at[part[0]].add(part[1].astype(sum_VD.dtype)), None)  # noqa: E731
    if parts == 1:
        return add(jnp.zeros_like(table_VD), (tokens_BL, grad_BLD))[0], None
    cut = lambda x: jnp.moveaxis(x.reshape(batch, parts, length // parts, *x.shape[2:]), 1, 0)  # noqa: E731
    grad_PBCD = constrain(cut(grad_BLD), None, "replicas", None, "embed")
    return jax.lax.scan(add, jnp.zeros_like(table_VD), (cut(tokens_BL), grad_PBCD))[0], None


look_up.defvjp(_look_up, _add_up)


class Projection(nnx.Module):
    """A linear map over the last `inputs` dimensions: [..., *in] -> [..., *out], as one matrix product.

    Args:
        shape_in, shape_out: dimensions contracted and produced, e.g. (embed,) -> (heads, head_dim).
        axes: logical axes of the kernel, inputs first.
        scale: standard deviation of the initial kernel; None = 1/sqrt(product of shape_in).
        bias: None for what the config says.
    """

    def __init__(
        self,
        shape_in: tuple[int, ...],
        shape_out: tuple[int, ...],
        axes: Axes,
        config: TransformerConfig,
        *,
        rngs: nnx.Rngs,
        scale: float | None = None,
        bias: bool | None = None,
    ):
        self.inputs, self.dtype = len(shape_in), compute_dtype(config)
        scale = 1 / math.sqrt(math.prod(shape_in)) if scale is None else scale
        shape = (*shape_in, *shape_out)
        self.kernel = param(scale * jax.random.normal(rngs.params(), shape, config.param_dtype), axes)
        has_bias = config.use_bias if bias is None else bias
        self.bias = param(jnp.zeros(shape_out, config.param_dtype), axes[self.inputs :]) if has_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.apply(x, self.kernel[...], None if self.bias is None else self.bias[...])

    def apply(self, x: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        """The same map by a part of the kernel and of the bias."""
        y = contract(x.astype(self.dtype), kernel.astype(self.dtype), self.inputs)
        return y if bias is None else y + bias.astype(self.dtype)


class Norm(nnx.Module):
    """RMSNorm or LayerNorm over the last axis, computed in float32."""

    def __init__(self, size: int, config: TransformerConfig, axis: str | None = "norm", kind: str | None = None):
        self.kind, self.epsilon = kind or config.norm, config.norm_epsilon
        self.scale = param(jnp.ones(size, config.param_dtype), (axis,))
        has_bias = self.kind == "layernorm" and config.use_bias
        self.bias = param(jnp.zeros(size, config.param_dtype), (axis,)) if has_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        if self.kind == "layernorm":
            y = y - jnp.mean(y, -1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + self.epsilon)
        y = y * self.scale[...].astype(jnp.float32)
        y = y if self.bias is None else y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "swiglu": jax.nn.silu,
    "geglu": jax.nn.gelu,
    "gelu": jax.nn.gelu,
    "gelu_erf": functools.partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}

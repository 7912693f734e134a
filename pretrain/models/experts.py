"""A mixture of experts: each token goes through the MLPs that a router chooses for it.

Shazeer et al. 2017; capacity as in GShard (Lepikhin et al. 2020), without dropping as in MegaBlocks (Gale et al. 2022),
shared experts and fine-grained ones as in DeepSeekMoE (Dai et al. 2024), load balance by a loss over each row and by a
bias that no gradient moves as in DeepSeek-V3 (2024, section 2.1.2).

Axes: B batch · L length · D embed · F mlp · E experts · K experts of a token · C capacity · T tokens, once for each
of their experts · N blocks of M tokens.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.core.platform import platform
from pretrain.models.config import Experts, TransformerConfig
from pretrain.models.layers import ACTIVATIONS, compute_dtype, param
from pretrain.models.mlp import Mlp
from pretrain.sharding.exchange import best_experts, through_experts
from pretrain.sharding.rules import constrain

BLOCK = 128  # tokens of one expert that are multiplied together on CPU
Product = Callable[[jax.Array, jax.Array], jax.Array]  # tokens and the matrices of all experts [E, in, out]


class Routing(NamedTuple):
    """What a router decided and how it stands with its loads, summed over the tokens of documents.

    Attributes:
        load_E: float32, tokens sent to each expert.
        balance: load-balance loss, summed over rows; 1 a row where load is even.
        log_z: squared log-partition, summed over tokens.
        dropped: places that found no room.
    """

    load_E: jax.Array
    balance: jax.Array
    log_z: jax.Array
    dropped: jax.Array


class Mixture(nnx.Module):
    """[batch, length, embed] -> [batch, length, embed] and what the router did. Experts have no biases."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config, self.experts = config, config.experts
        count, embed, mlp = self.experts.num_experts, config.embed_dim, self.experts.mlp_dim or config.mlp_dim
        scale = config.matrix_scale("mlp_in", embed)

        def matrix(shape, axes, scale):
            return param(scale * jax.random.normal(rngs.params(), shape, config.param_dtype), axes)

        self.router = matrix((embed, count), ("embed", None), scale)
        self.up = matrix((count, embed, mlp), ("experts", "embed", "mlp"), scale)
        self.gate = matrix((count, embed, mlp), ("experts", "embed", "mlp"), scale) if config.is_gated else None
        self.down = matrix((count, mlp, embed), ("experts", "mlp", "embed"), config.matrix_scale("mlp_out", mlp))
        self.bias = param(jnp.zeros(count, jnp.float32), (None,)) if self.experts.bias_rate else None
        self.shared = Mlp(config, rngs=rngs, size=self.experts.shared * mlp) if self.experts.shared else None

    def __call__(self, x_BLD: jax.Array, valid_BL: jax.Array) -> tuple[jax.Array, Routing]:
        """Args: `valid_BL`, bool, the tokens of documents: padding takes no room and is not counted."""
        experts = self.experts
        logits_BLE = x_BLD.astype(jnp.float32) @ self.router[...].astype(jnp.float32)
        scores_BLE = jax.nn.softmax(logits_BLE) if experts.scores == "softmax" else jax.nn.sigmoid(logits_BLE)
        ranked_BLE = scores_BLE if self.bias is None else scores_BLE + self.bias[...]
        chosen_BLK = best_experts(ranked_BLE, experts.top_k)
        weights_BLK = jnp.take_along_axis(scores_BLE, chosen_BLK, axis=-1)
        if experts.normalize:
            weights_BLK = weights_BLK / jnp.maximum(jnp.sum(weights_BLK, -1, keepdims=True), 1e-20)
        weights_BLK = weights_BLK * experts.scale
        run = self._dropless if experts.capacity_factor is None else self._with_capacity
        y_BLD, dropped = run(x_BLD.astype(compute_dtype(self.config)), chosen_BLK, weights_BLK, valid_BL)
        if self.shared is not None:
            y_BLD = y_BLD + self.shared(x_BLD)
        return y_BLD, self._routing(logits_BLE, scores_BLE, chosen_BLK, valid_BL, dropped)

    def _routing(self, logits_BLE, scores_BLE, chosen_BLK, valid_BL, dropped) -> Routing:
        count, valid_BL1 = self.experts.num_experts, valid_BL[..., None].astype(jnp.float32)
        tokens_B1 = jnp.maximum(jnp.sum(valid_BL1, axis=1), 1)
        sent_BE = jnp.sum(jnp.sum(jax.nn.one_hot(chosen_BLK, count), axis=2) * valid_BL1, axis=1)
        share_BLE = scores_BLE / jnp.maximum(jnp.sum(scores_BLE, -1, keepdims=True), 1e-20)
        share_BE = jnp.sum(share_BLE * valid_BL1, axis=1) / tokens_B1
        balance_B = jnp.sum(share_BE * sent_BE / tokens_B1, axis=-1) * count / self.experts.top_k
        log_z_BL = jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1)) * valid_BL
        return Routing(jnp.sum(sent_BE, axis=0), jnp.sum(balance_B), jnp.sum(log_z_BL), dropped)

    def _kernels(self, dtype: jnp.dtype) -> list[jax.Array]:
        """The matrices of all experts: up, down and, where there is one, gate."""
        return [kernel[...].astype(dtype) for kernel in (self.up, self.down, self.gate) if kernel is not None]

    def _mlp(self, kernels: list[jax.Array], x: jax.Array, product: Product) -> jax.Array:
        """The experts' MLPs, by a product of tokens with the matrices of their experts."""
        activate, (up, down, *gate) = ACTIVATIONS[self.config.activation], kernels
        hidden = checkpoint_name(product(x, up), "up")
        hidden = activate(checkpoint_name(product(x, gate[0]), "gate")) * hidden if gate else activate(hidden)
        return product(hidden, down)

    def _dropless(self, x_BLD, chosen_BLK, weights_BLK, valid_BL):
        """Every expert takes all tokens that chose it, wherever it is."""
        del valid_BL
        run = functools.partial(_in_blocks if platform() == "cpu" else _ragged, self._mlp)
        y_BLKD = through_experts(run, self._kernels(x_BLD.dtype), x_BLD, chosen_BLK)
        return jnp.sum(y_BLKD * weights_BLK[..., None].astype(y_BLKD.dtype), axis=2), jnp.zeros((), jnp.float32)

    def _with_capacity(self, x_BLD, chosen_BLK, weights_BLK, valid_BL):
        """Each expert takes its first C tokens of a row, first choices before second ones."""
        count, top_k, dtype = self.experts.num_experts, self.experts.top_k, x_BLD.dtype
        batch, length, _ = x_BLD.shape
        capacity = math.ceil(self.experts.capacity_factor * length * top_k / count)
        sent_BLKE = jax.nn.one_hot(chosen_BLK, count, dtype=jnp.int32) * valid_BL[..., None, None]
        by_choice = sent_BLKE.transpose(0, 2, 1, 3).reshape(batch, top_k * length, count)
        before = jnp.cumsum(by_choice, axis=1) - by_choice
        place_BLKE = before.reshape(batch, top_k, length, count).transpose(0, 2, 1, 3)
        kept_BLKE = sent_BLKE * (place_BLKE < capacity)
        slot_BLKEC = jax.nn.one_hot(place_BLKE, capacity, dtype=dtype) * kept_BLKE[..., None].astype(dtype)
        dispatch_BLEC = jnp.sum(slot_BLKEC, axis=2)
        combine_BLEC = jnp.einsum("blkec,blk->blec", slot_BLKEC, weights_BLK.astype(dtype))
        # Chosen where the rows are, then exchanged: in one step, XLA would gather all rows on every device.
        x_EBCD = constrain(jnp.einsum("blec,bld->ebcd", dispatch_BLEC, x_BLD), None, "batch", None, None)
        x_EBCD = constrain(x_EBCD, "experts", "batch", None, None)
        product = lambda x, kernel: jnp.einsum("ebci,eij->ebcj", x, kernel)  # noqa: E731
        y_EBCD = constrain(self._mlp(self._kernels(dtype), x_EBCD, product), "experts", "batch", None, None)
        y_EBCD = constrain(y_EBCD, None, "batch", None, None)
        y_BLD = jnp.einsum("blec,ebcd->bld", combine_BLEC, y_EBCD)
        return y_BLD, jnp.sum(sent_BLKE - kept_BLKE).astype(jnp.float32)


def _ragged(mlp: Callable, kernels: list[jax.Array], x_TD: jax.Array, expert_T: jax.Array) -> jax.Array:
    """`mlp` of tokens that stand in the order of their experts, by the compiler's ragged products."""
    sizes_E = jnp.bincount(expert_T, length=len(kernels[0])).astype(jnp.int32)
    return mlp(kernels, x_TD, lambda x, kernel: jax.lax.ragged_dot(x, kernel, sizes_E))


def _in_blocks(mlp: Callable, kernels: list[jax.Array], x_TD: jax.Array, expert_T: jax.Array) -> jax.Array:
    """The same in blocks of one expert each, padded: XLA for CPU would multiply all tokens with all experts."""
    experts, (tokens, embed) = len(kernels[0]), x_TD.shape
    sizes_E = jnp.bincount(expert_T, length=experts).astype(jnp.int32)
    blocks_E = -(-sizes_E // BLOCK)
    count = -(-tokens // BLOCK) + experts  # of blocks, whatever the sizes
    ends_E, starts_E = jnp.cumsum(blocks_E), jnp.cumsum(sizes_E) - sizes_E
    place_T = (ends_E - blocks_E)[expert_T] * BLOCK + jnp.arange(tokens) - starts_E[expert_T]
    place_T = jnp.where(expert_T < experts, place_T, count * BLOCK)  # no expert: no place
    expert_N = jnp.minimum(jnp.searchsorted(ends_E, jnp.arange(count), side="right"), experts - 1)
    x_NMD = jnp.zeros((count * BLOCK, embed), x_TD.dtype).at[place_T].set(x_TD, mode="drop")
    product = lambda x, kernel: jnp.einsum("nmi,nij->nmj", x, kernel[expert_N])  # noqa: E731
    y_NMD = mlp(kernels, x_NMD.reshape(count, BLOCK, embed), product)
    return y_NMD.reshape(count * BLOCK, -1).at[place_T].get(mode="fill", fill_value=0)


def moved_bias(bias_NE: jax.Array, load_NE: jax.Array, experts: Experts) -> jax.Array:
    """Selection biases after a step: up where an expert had less than its share of tokens, down where more."""
    return bias_NE + experts.bias_rate * jnp.sign(jnp.mean(load_NE, axis=-1, keepdims=True) - load_NE)

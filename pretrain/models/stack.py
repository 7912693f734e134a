"""A stack of Transformer layers: attention, perhaps attention to another sequence, and an MLP or experts; scanned.

Axes: B batch · L length · S keys · D embed · N layers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from pretrain.core.errors import check
from pretrain.core.trees import named_leaves
from pretrain.models.attention import RING_SEES, Attention, Cache, Sight, in_ring, within_window
from pretrain.models.config import MINIMAL, TransformerConfig
from pretrain.models.experts import Mixture, Routing
from pretrain.models.layers import Norm
from pretrain.models.mlp import Mlp
from pretrain.models.positions import DistanceBias, rotary_tables
from pretrain.sharding.pipeline import run_in_stages
from pretrain.sharding.rules import constrain, ways_of
from pretrain.sharding.zigzag import from_zigzag, into_zigzag

LAYER_INPUT = "layer_input"
RING_COUNTS = (
    "Parallelism.context = 'ring' keeps causal rows in another order, and Experts.capacity_factor gives room to tokens "
    "in the order they stand in, later ones before earlier ones: choose 'all_gather' or 'ulysses', or set it to None"
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Context:
    """What all layers of a stack get beside the hidden states.

    Attributes:
        sight: who looks at whom.
        narrow_mask: the mask of layers with a sliding window, [batch, queries, keys], or None.
        valid_BL: bool, tokens of documents.
        offset: int32 scalar, slot of the first new token when decoding.
        memory_BSD, memory_sight: an encoder's output and who looks at what of it.
        condition_BD: what steers the layers of a `models.diffusion.DiffusionTransformer`.
    """

    sight: Sight
    valid_BL: jax.Array
    narrow_mask: jax.Array | None = None
    offset: jax.Array | None = None
    memory_BSD: jax.Array | None = None
    memory_sight: Sight | None = None
    condition_BD: jax.Array | None = None

    def in_zigzag(self) -> "Context":
        """The same for queries in zig-zag order; there are no masks then."""
        check(self.sight.segments is not None and self.narrow_mask is None, RING_SEES)
        sight, memory = self.sight, self.memory_sight
        rotary, segments = jax.tree.map(into_zigzag, (sight.rotary, sight.segments))
        sight = dataclasses.replace(sight, mask_BLS=None, rotary=rotary, segments=segments)
        if memory is not None:
            segments = into_zigzag(memory.segments[0]), memory.segments[1]
            memory = dataclasses.replace(memory, mask_BLS=None, segments=segments)
        valid_BL = into_zigzag(self.valid_BL)
        return dataclasses.replace(self, sight=sight, valid_BL=valid_BL, memory_sight=memory)


class Block(nnx.Module):
    """One layer; each part works on a normed copy of the residual stream, or is normed with it (`norm_position`)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, cross: bool = False, routed: bool = False):
        def norms(prefix: str) -> None:
            setattr(self, f"{prefix}_norm", Norm(config.embed_dim, config))
            if config.norm_position == "sandwich":
                setattr(self, f"{prefix}_out_norm", Norm(config.embed_dim, config))

        self.norm_position, self.branch_scale = config.norm_position, 1 / config.depth_ratio
        norms("attention")
        self.attention = Attention(config, rngs=rngs)
        self.cross = Attention(config, rngs=rngs) if cross else None
        if cross:
            norms("cross")
        norms("mlp")
        self.mlp = Mixture(config, rngs=rngs) if routed else Mlp(config, rngs=rngs)

    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Cache | None = None, is_wide: jax.Array | None = None
    ) -> tuple[jax.Array, Cache | None, Routing | None]:
        """Args: `is_wide`, bool scalar, whether this layer looks beyond the sliding window."""
        sight, routing = context.sight, None
        if context.narrow_mask is not None:
            mask_BLS = jnp.where(is_wide, sight.mask_BLS, context.narrow_mask)
            sight = dataclasses.replace(sight, mask_BLS=mask_BLS, segments=None)

        def attend(y_BLD):
            nonlocal cache
            y_BLD, cache = self.attention(y_BLD, sight, cache, context.offset)
            return y_BLD

        def look_up(y_BLD):
            return self.cross(y_BLD, context.memory_sight, memory_BSD=context.memory_BSD)[0]

        def think(y_BLD):
            nonlocal routing
            if isinstance(self.mlp, Mlp):
                return self.mlp(y_BLD)
            y_BLD, routing = self.mlp(y_BLD, context.valid_BL)
            return y_BLD

        x_BLD = self._add(x_BLD, attend, "attention")
        if self.cross is not None:
            x_BLD = self._add(x_BLD, look_up, "cross")
        x_BLD = self._add(x_BLD, think, "mlp")
        return constrain(x_BLD, "batch", "residual_length", None), cache, routing

    def _add(self, x_BLD, branch, prefix: str):
        norm = getattr(self, f"{prefix}_norm")
        y_BLD = branch(x_BLD if self.norm_position == "post" else norm(x_BLD))
        if self.norm_position == "sandwich":
            y_BLD = getattr(self, f"{prefix}_out_norm")(y_BLD)
        y_BLD = y_BLD if self.branch_scale == 1 else y_BLD * self.branch_scale
        return norm(x_BLD + y_BLD) if self.norm_position == "post" else x_BLD + y_BLD


class Stack(nnx.Module):
    """Layers and the last norm.

    Args:
        config: of the model.
        layers: how many.
        cross: whether they attend to an encoder's output.
        two_sided: whether a token may look ahead, for biases by distance.
        block: what one layer is; made and called as `Block` is.
        final_norm: whether there is a norm after the last layer, where `norm_position` has one.

    Attributes:
        watched: whether a call notes, as intermediates [layers], the RMS of the residual stream after each layer and
            what the layers' own parts note.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layers: int,
        *,
        cross: bool = False,
        two_sided: bool = False,
        block: type[nnx.Module] = Block,
        final_norm: bool = True,
        rngs: nnx.Rngs,
    ):
        self.config, self.layers, self.watched = config, layers, False
        self.dense = config.experts.dense_layers if config.experts else layers

        def make_blocks(count: int, routed: bool) -> nnx.Module | None:
            """One block whose arrays have a leading "layers" axis."""
            if not count:
                return None
            split = nnx.split_rngs(splits=count)
            make = nnx.vmap(in_axes=(0,), out_axes=0)
            return split(make(lambda rngs: block(config, rngs=rngs, cross=cross, routed=routed)))(rngs)

        self.dense_blocks = make_blocks(self.dense if config.experts else 0, False)
        self.blocks = make_blocks(layers - self.dense if config.experts else layers, config.experts is not None)
        final_norm = final_norm and config.norm_position != "post"
        self.final_norm = Norm(config.embed_dim, config) if final_norm else None
        biased = config.positions in ("relative", "alibi")
        self.distance = DistanceBias(config, two_sided=two_sided, rngs=rngs) if biased else None

    def sight(
        self,
        mask_BLS: jax.Array,
        positions_BL: jax.Array,
        places_L: jax.Array,
        segments: tuple[jax.Array, jax.Array] | None = None,
        *,
        causal: bool,
    ) -> Sight:
        """What attention needs, for queries at `positions_BL` of their documents and `places_L` of the row."""
        keys_S = jnp.arange(mask_BLS.shape[-1])
        bias_1HLS = None if self.distance is None else self.distance(places_L, keys_S)
        rotary = rotary_tables(positions_BL, self.config) if self.config.positions == "rotary" else None
        return Sight(mask_BLS, bias_1HLS, rotary, segments, causal)

    def __call__(
        self, x_BLD: jax.Array, context: Context, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None, Routing | None]:
        """Hidden states, the grown cache, and what the routers did, by layer (None without experts)."""
        window, every = self.config.sliding_window, self.config.global_every
        if window is not None:
            rows_L = jnp.arange(x_BLD.shape[1]) + (0 if context.offset is None else context.offset)
            keys_S = jnp.arange(context.sight.mask_BLS.shape[-1])
            narrow = within_window(context.sight.mask_BLS, rows_L, keys_S, window)
            context = dataclasses.replace(context, narrow_mask=narrow)
        in_zigzag = in_ring() and context.sight.causal and cache is None
        if in_zigzag:
            check(self.config.experts is None or self.config.experts.capacity_factor is None, RING_COUNTS)
            x_BLD, context = into_zigzag(x_BLD), context.in_zigzag()
        wide_N = np.arange(1, self.layers + 1) % every == 0 if every else np.zeros(self.layers, bool)
        parts = [(self.dense_blocks, slice(0, self.dense))] if self.dense_blocks is not None else []
        parts.append((self.blocks, slice(self.dense if self.config.experts else 0, self.layers)))
        caches = []
        for blocks, span in parts:
            part_cache = jax.tree.map(lambda x, span=span: x[span], cache)
            x_BLD, part_cache, routing = self._scan(blocks, x_BLD, context, part_cache, wide_N[span])
            caches.append(part_cache)
        if cache is not None:
            cache = caches[0] if len(caches) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *caches)
        x_BLD = from_zigzag(x_BLD) if in_zigzag else x_BLD
        return (x_BLD if self.final_norm is None else self.final_norm(x_BLD)), cache, routing

    def _scan(self, blocks: Block, x_BLD, context: Context, cache, wide_N: np.ndarray) -> Any:
        graph, layers = nnx.split(blocks)

        def run(scanned, x_BLD, context):
            def run_layer(x_BLD, scanned):
                layer, layer_cache, is_wide = scanned
                block = nnx.merge(graph, layer)
                x_BLD, layer_cache, routing = block(x_BLD, context, layer_cache, is_wide)
                return x_BLD, (layer_cache, routing, self._noted(block, x_BLD, context.valid_BL))

            unroll = len(wide_N) if self.config.scan_unroll == -1 else self.config.scan_unroll
            return jax.lax.scan(_remat(run_layer, self.config), x_BLD, scanned, unroll=unroll)

        run = functools.partial(run_in_stages, run) if ways_of("stage") > 1 and cache is None else run
        x_BLD, (cache, routing, noted) = run((layers, cache, wide_N), x_BLD, context)
        for name, values_N in noted.items():  # of the layers before too, where dense ones come first
            before = [getattr(self, name)[...]] if hasattr(self, name) else []
            setattr(self, name, nnx.Intermediate(jnp.concatenate([*before, values_N])))
        return x_BLD, cache, routing

    def _noted(self, block: Block, x_BLD: jax.Array, valid_BL: jax.Array) -> dict[str, jax.Array]:
        """What there is to note of one layer, by name; nothing unless watched, nor in stages, which can only add up."""
        if not self.watched or ways_of("stage") > 1:
            return {}
        parts = named_leaves(nnx.to_pure_dict(nnx.pop(block, nnx.Intermediate)))
        square_BL = jnp.mean(jnp.square(x_BLD.astype(jnp.float32)), axis=-1) * valid_BL
        rms = jnp.sqrt(jnp.sum(square_BL) / jnp.maximum(jnp.sum(valid_BL), 1))
        return {"activation_rms": rms, **{name.replace("/", "_"): x for name, x in parts.items()}}


def _remat(function, config: TransformerConfig):
    """`function` of (hidden states, layer) with the backward pass computing again what `config.remat` says."""
    policies = jax.checkpoint_policies
    if config.remat == "none":
        return function
    if config.remat == "offload":
        policy = policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[], names_which_can_be_offloaded=[LAYER_INPUT],
            offload_src="device", offload_dst="pinned_host",
        )  # fmt: skip
        named = lambda x_BLD, layer: function(checkpoint_name(x_BLD, LAYER_INPUT), layer)  # noqa: E731
        return jax.checkpoint(named, prevent_cse=False, policy=policy)
    names = {"minimal": MINIMAL, "named": config.remat_names, "full": ()}[config.remat]
    policy = policies.save_only_these_names(*names) if names else None
    return jax.checkpoint(function, prevent_cse=False, policy=policy)

"""Encoders of pictures and films, alone and beside one of text, on the Transformer's own stack.

Patches and class token: Dosovitskiy et al. 2020; attention pooling: Zhai et al. 2022; two towers: Radford et al. 2021;
tubes, the patches of films: Arnab et al. 2021.
Where a patch lies is a point in the table of learned positions, so pictures of any size and shape are one case: the
table is read between its entries (as NaViT, Dehghani et al. 2023, and SigLIP 2's NaFlex, Tschannen et al. 2025, do).

Axes: B batch · L patches (and the class token) · P values of a patch · D embed · J joint space · G grid of positions ·
K chosen patches.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.core.errors import check
from pretrain.core.video import chosen, cut
from pretrain.models.attention import Attention, Sight, attention_mask
from pretrain.models.config import TransformerConfig
from pretrain.models.layers import ACTIVATIONS, Norm, Projection, compute_dtype, param
from pretrain.models.mlp import Mlp
from pretrain.models.positions import sinusoids
from pretrain.models.stack import Context, Stack
from pretrain.models.transformer import Transformer
from pretrain.models.vision_config import Vision
from pretrain.sharding.rules import constrain


class Patches(NamedTuple):
    """Pictures or films as patches.

    Attributes:
        values_BLP: pixels, uint8 or 0 … 255, [batch, patches, tube * patch * patch * channels].
        rows_BL, columns_BL: float32, centre of each patch in the table of positions; [1, patches] where all are alike.
        valid_BL: bool, what is no padding.
        times_BL: float32, number of each tube in its film; None for pictures.
    """

    values_BLP: jax.Array
    rows_BL: jax.Array
    columns_BL: jax.Array
    valid_BL: jax.Array
    times_BL: jax.Array | None = None

    def at(self, places_BK: jax.Array) -> "Patches":
        """Some of them, by number."""
        batch = len(self.values_BLP)
        pick = lambda x: chosen(jnp.broadcast_to(x, (batch, *x.shape[1:])), places_BK)  # noqa: E731
        return jax.tree.map(pick, self)


def join(patches_BLP: jax.Array, height: int, width: int, channels: int) -> jax.Array:
    """The pictures of height x width patches that `cut` has cut, [B, pixels, pixels, C]."""
    side = round((patches_BLP.shape[-1] // channels) ** 0.5)
    x = patches_BLP.reshape(-1, height, width, side, side, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height * side, width * side, channels)


def whole(images: jax.Array, vision: Vision) -> Patches:
    """Pictures [B, H, W, C] or films [B, T, H, W, C] of one size as patches; it need not be `Vision.image_size`.

    Raises:
        UserError: patches do not fill it.
    """
    *_, height, width, channels = images.shape
    sides, frames = (height, width), images.shape[1] if images.ndim == 5 else 1
    check(
        all(side % vision.patch_size == 0 for side in sides) and channels == vision.channels,
        f"pictures of {sides[0]} x {sides[1]} pixels and {channels} channels cannot be cut into patches of "
        f"{vision.patch_size} x {vision.patch_size} with {vision.channels}: Pictures and Vision must agree",
    )
    check(
        frames % vision.tube == 0 and (images.ndim == 5) == (vision.frames > 1),
        f"{frames} frames cannot be cut into tubes of {vision.tube}: Films and Vision (frames, tube) must agree",
    )
    values_BLP = cut(images, vision.patch_size, vision.tube)
    rows, columns = (side // vision.patch_size for side in sides)
    index_1L = jnp.arange(values_BLP.shape[1])[None]
    places = place(index_1L % (rows * columns), jnp.array([[rows, columns]]), vision.grid)
    times_1L = (index_1L // (rows * columns)).astype(jnp.float32) if images.ndim == 5 else None
    return Patches(values_BLP, *places, jnp.ones(values_BLP.shape[:2], bool), times_1L)


def of_any_size(values_BLP: jax.Array, grid_B2: jax.Array, vision: Vision) -> Patches:
    """Pictures of different sizes, each as its patches row by row and padding behind them.

    Args:
        values_BLP: patches.
        grid_B2: int32, rows and columns of patches in each picture.
        vision: for the table of positions.
    """
    index_1L = jnp.arange(values_BLP.shape[1])[None]
    places = place(index_1L, grid_B2, vision.grid)
    return Patches(values_BLP, *places, index_1L < jnp.prod(grid_B2, axis=1, keepdims=True))


def place(index_BL: jax.Array, grid_B2: jax.Array, side: int) -> tuple[jax.Array, jax.Array]:
    """Row and column of patches, float32 [B, L], in a table of `side` x `side` that is laid over the whole picture."""
    height_B1, width_B1 = (jnp.maximum(grid_B2[:, axis, None], 1) for axis in (0, 1))
    rows_BL, columns_BL = index_BL // width_B1, index_BL % width_B1
    return (rows_BL + 0.5) / height_B1 * side - 0.5, (columns_BL + 0.5) / width_B1 * side - 0.5


def waves_at(patches: Patches, size: int) -> jax.Array:
    """Sinusoids of where patches lie, float32 [B, L, size]: half of the row, half of the column, all of the time."""
    halves = [sinusoids(places_BL, size // 2) for places_BL in (patches.rows_BL, patches.columns_BL)]
    return jnp.concatenate(halves, axis=-1) + waves_of_time(patches, size)


def waves_of_time(patches: Patches, size: int) -> jax.Array | float:
    """Sinusoids of the time, float32 [B, L, size]; 0 for pictures."""
    return 0.0 if patches.times_BL is None else sinusoids(patches.times_BL, size)


def between(table_GGD: jax.Array, rows_BL: jax.Array, columns_BL: jax.Array) -> jax.Array:
    """The table read between its entries (bilinear), [B, L, D]; beyond its edge the edge goes on."""
    side = table_GGD.shape[0]
    found_BLD = 0.0
    for row_BL, row_share_BL in _neighbours(rows_BL, side):
        for column_BL, column_share_BL in _neighbours(columns_BL, side):
            found_BLD += (row_share_BL * column_share_BL)[..., None] * table_GGD[row_BL, column_BL]
    return found_BLD


def _neighbours(places_BL: jax.Array, side: int) -> list[tuple[jax.Array, jax.Array]]:
    """The two entries next to each place, and the share of each."""
    places_BL = jnp.clip(places_BL, 0, side - 1)
    low_BL = jnp.minimum(jnp.floor(places_BL).astype(jnp.int32), max(side - 2, 0))
    share_BL = places_BL - low_BL
    return [(low_BL, 1 - share_BL), (jnp.minimum(low_BL + 1, side - 1), share_BL)]


class AttentionPooling(nnx.Module):
    """One vector of a sequence: a learned query attends to it, and an MLP follows (Zhai et al. 2022)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        size = config.embed_dim
        query = jax.random.normal(rngs.params(), (size,), config.param_dtype) / size**0.5
        self.query = param(query, ("embed",))
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm, self.mlp = Norm(size, config), Mlp(config, rngs=rngs)

    def __call__(self, hidden_BLD: jax.Array, valid_BL: jax.Array) -> jax.Array:
        """[B, D]."""
        query_B1D = jnp.broadcast_to(
            self.query[...].astype(hidden_BLD.dtype), (len(hidden_BLD), 1, hidden_BLD.shape[-1])
        )
        x_B1D, _ = self.attention(query_B1D, Sight(valid_BL[:, None, :]), memory_BSD=hidden_BLD)
        return (x_B1D + self.mlp(self.mlp_norm(x_B1D)))[:, 0]


class ProjectionHead(nnx.Module):
    """Two layers from a pooled vector to the space of a contrastive loss, thrown away afterwards (Chen et al. 2020)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        embed, scale = (config.embed_dim,), config.init_scale
        self.hidden = Projection(embed, embed, ("embed", None), config, rngs=rngs, scale=scale)
        self.out = Projection(embed, (config.towers.joint_dim,), ("embed", None), config, rngs=rngs, scale=scale)

    def __call__(self, pooled_BD: jax.Array) -> jax.Array:
        return self.out(ACTIVATIONS["relu"](self.hidden(pooled_BD)))


class VisionEncoder(nnx.Module):
    """Pictures to hidden states of patches, and to one vector each.

    Args:
        config: with `vision`.
        heads: "projection", for contrastive learning on pictures alone.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, heads: Sequence[str] = ()):
        self.vision, trunk = config.vision, config.image_encoder
        self.config, v, size = trunk, config.vision, trunk.embed_dim
        check(v.positions == "learned" or size % 4 == 0, "sincos positions need an embed_dim that is a multiple of 4")

        def table(*shape: int) -> jax.Array:
            return trunk.embedding_scale * jax.random.normal(rngs.params(), shape, trunk.param_dtype)

        patch_scale = trunk.embedding_init_scale if trunk.init_rule == "clip" else trunk.init_scale
        self.patch_embedding = Projection(
            (v.patch_values,), (size,), (None, "embed"), trunk, rngs=rngs, scale=patch_scale,
            bias=trunk.use_bias and v.patch_bias,
        )  # fmt: skip
        has_class, is_learned = v.pooling == "class", v.positions == "learned"
        self.class_token = param(table(size), ("embed",)) if has_class else None
        places = v.grid**2 + has_class  # the class token's comes first
        self.position_embedding = param(table(places, size), (None, "embed")) if is_learned else None
        self.input_norm = Norm(size, trunk) if v.input_norm else None
        self.stack = Stack(trunk, trunk.num_layers, two_sided=True, rngs=rngs)
        self.pooling = AttentionPooling(trunk, rngs=rngs) if v.pooling == "attention" else None
        for name in heads:
            setattr(self, f"{name}_head", {"projection": ProjectionHead}[name](trunk, rngs=rngs))

    def patches(self, pictures: dict[str, jax.Array]) -> Patches:
        """Pictures as batches hold them: `images` uint8 [B, H, W, C], `frames` uint8 [B, T, H, W, C] of films, or
        `patches` [B, L, P] and `grid` [B, 2].
        """
        if "grid" in pictures:
            return of_any_size(pictures["patches"], pictures["grid"], self.vision)
        return whole(pictures["frames" if "frames" in pictures else "images"], self.vision)

    def embed(self, patches: Patches) -> jax.Array:
        """Patches with their positions, without the class token, [B, L, D]."""
        v, dtype = self.vision, compute_dtype(self.config)
        pixels = patches.values_BLP.astype(jnp.float32).reshape(*patches.values_BLP.shape[:2], -1, v.channels)
        pixels = (pixels / 255 - jnp.asarray(v.mean)) / jnp.asarray(v.std)
        x_BLD = self.patch_embedding(pixels.reshape(patches.values_BLP.shape))
        return x_BLD + self.positions(patches).astype(dtype)

    def positions(self, patches: Patches) -> jax.Array:
        """What tells patches where they lie, float32 [B, L, D]."""
        size = self.config.embed_dim
        if self.position_embedding is None:
            return waves_at(patches, size)
        side, table = self.vision.grid, self.position_embedding[...].astype(jnp.float32)
        found_BLD = between(table[-(side**2) :].reshape(side, side, size), patches.rows_BL, patches.columns_BL)
        return found_BLD + waves_of_time(patches, size)

    def encode(self, x_BLD: jax.Array, valid_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Hidden states of embedded patches after the last norm, the class token's first, and which are valid."""
        if self.class_token is not None:
            first_D = self.class_token[...]
            if self.position_embedding is not None:
                first_D = first_D + self.position_embedding[...][0]
            first_B1D = jnp.broadcast_to(first_D.astype(x_BLD.dtype), (len(x_BLD), 1, x_BLD.shape[-1]))
            x_BLD = jnp.concatenate([first_B1D, x_BLD], axis=1)
            valid_BL = jnp.concatenate([jnp.ones((len(x_BLD), 1), bool), valid_BL], axis=1)
        x_BLD = x_BLD if self.input_norm is None else self.input_norm(x_BLD)
        return look_around(self.stack, x_BLD, valid_BL), valid_BL

    def pool(self, hidden_BLD: jax.Array, valid_BL: jax.Array) -> jax.Array:
        """One vector of each picture, [B, D]."""
        if self.class_token is not None:
            return hidden_BLD[:, 0]
        if self.pooling is not None:
            return self.pooling(hidden_BLD, valid_BL)
        return mean_of(hidden_BLD, valid_BL)

    def __call__(self, patches: Patches) -> jax.Array:
        """One vector of each picture, [B, D] in the compute dtype."""
        return self.pool(*self.encode(self.embed(patches), patches.valid_BL))


class TwoTowers(nnx.Module):
    """An encoder of pictures and one of text, in one space.

    Args:
        config: of the text tower, with `vision` and `towers`.
        heads: "temperature" (a learned factor on the logits) and "pair_bias" (a learned bias, of the sigmoid loss).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, heads: Sequence[str] = ()):
        self.config, towers = config, config.towers
        self.image = VisionEncoder(config, rngs=rngs)
        self.text = Transformer(text_tower(config), rngs=rngs)
        width, joint = self.image.config.embed_dim, towers.joint_dim
        check(
            towers.image_projection or width == joint,
            f"Towers.image_projection = False needs an image tower of width {joint} (Towers.joint_dim), not {width}",
        )

        def projection(size: int) -> Projection:
            bias = towers.projection_bias
            return Projection((size,), (joint,), ("embed", None), config, rngs=rngs, scale=config.init_scale, bias=bias)

        self.image_projection = projection(width) if towers.image_projection else None
        self.text_projection = projection(config.embed_dim)
        scalar = lambda value: param(jnp.asarray(value, config.param_dtype), ())  # noqa: E731
        self.log_temperature = scalar(jnp.log(towers.temperature)) if "temperature" in heads else None
        self.pair_bias = scalar(towers.pair_bias) if "pair_bias" in heads else None

    def encode_image(self, patches: Patches) -> jax.Array:
        """A vector of length 1 for each picture, [B, J] float32."""
        pooled_BD = self.image(patches)
        return unit(pooled_BD if self.image_projection is None else self.image_projection(pooled_BD))

    def encode_text(self, tokens_BL: jax.Array, segment_ids_BL: jax.Array) -> jax.Array:
        """A vector of length 1 for each text, [B, J] float32.

        Args:
            tokens_BL: int32, one text a row, from the left.
            segment_ids_BL: int32, 1 where there is text and 0 behind it.
        """
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
        towers = self.config.towers
        hidden_BLD = self.text(tokens_BL, segment_ids_BL, positions_BL, causal=towers.causal_text).hidden
        valid_BL = segment_ids_BL > 0
        pooled_BD = last_of(hidden_BLD, valid_BL) if towers.text_pooling == "end" else mean_of(hidden_BLD, valid_BL)
        return unit(self.text_projection(pooled_BD))


def text_tower(config: TransformerConfig) -> TransformerConfig:
    """The configuration of the Transformer that reads the texts."""
    return dataclasses.replace(config, architecture="decoder" if config.towers.causal_text else "encoder")


def look_around(stack: Stack, x_BLD: jax.Array, valid_BL: jax.Array) -> jax.Array:
    """Hidden states [B, L, D] of a stack in which all that is valid of a row sees all of it."""
    x_BLD = constrain(x_BLD, "batch", "residual_length", None)
    places_L = jnp.arange(x_BLD.shape[1])
    mask_BLL = attention_mask(valid_BL.astype(jnp.int32), causal=False)
    sight = stack.sight(mask_BLL, places_L[None], places_L, causal=False)
    return stack(x_BLD, Context(sight, valid_BL))[0]


def mean_of(hidden_BLD: jax.Array, valid_BL: jax.Array) -> jax.Array:
    """Mean over what is valid, [B, D]; 0 where nothing is."""
    sums_BD = jnp.einsum("bld,bl->bd", hidden_BLD, valid_BL.astype(hidden_BLD.dtype))
    return sums_BD / jnp.maximum(jnp.sum(valid_BL, axis=1, keepdims=True), 1).astype(hidden_BLD.dtype)


def last_of(hidden_BLD: jax.Array, valid_BL: jax.Array) -> jax.Array:
    """The last that is valid, of rows that are valid from the left, [B, D]."""
    last_B = jnp.maximum(jnp.sum(valid_BL, axis=1) - 1, 0)
    return jnp.take_along_axis(hidden_BLD, last_B[:, None, None], axis=1)[:, 0]


def unit(x_BJ: jax.Array) -> jax.Array:
    """Vectors of length 1, float32; the zero vector stays."""
    x_BJ = x_BJ.astype(jnp.float32)
    return x_BJ * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x_BJ), axis=-1, keepdims=True), 1e-12))

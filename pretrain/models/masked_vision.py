"""Encoders of pictures and films that learn by what is hidden from them.

`MaskedAutoencoder` says the pixels of hidden patches (MAE, He et al. 2021; of films: VideoMAE, Tong et al. 2022),
`JointEmbedding` what a slowly following copy of the encoder makes of them (I-JEPA, Assran et al. 2023; V-JEPA, Bardes
et al. 2024). The encoder sees the other patches alone, so its work shrinks with their number. A narrow Transformer
behind it gets its hidden states, and for each hidden patch one learned vector with the patch's place.

Axes: B batch · L all patches · K seen patches (and the class token) · M hidden patches · P values of a patch · D embed.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.core.errors import check
from pretrain.core.objective import Metrics
from pretrain.core.video import chosen
from pretrain.models.config import TransformerConfig
from pretrain.models.layers import Projection, compute_dtype, param
from pretrain.models.stack import Stack
from pretrain.models.vision import Patches, VisionEncoder, look_around, waves_at

MASK_SCALE = 0.02  # standard deviation of the vector that stands for a hidden patch


class NarrowTransformer(nnx.Module):
    """Says of hidden patches what is asked, from what an encoder made of the others.

    Args:
        config: of the encoder, with `vision.predictor`.
        outputs: numbers said of a patch.
    """

    def __init__(self, config: TransformerConfig, outputs: int, *, rngs: nnx.Rngs):
        wide, narrow = config.image_encoder, config.patch_predictor
        size, scale = narrow.embed_dim, narrow.init_scale
        self.config = narrow
        self.narrow = Projection((wide.embed_dim,), (size,), ("embed", None), narrow, rngs=rngs, scale=scale)
        mask = MASK_SCALE * jax.random.normal(rngs.params(), (size,), narrow.param_dtype)
        self.mask = param(mask, ("embed",))
        self.stack = Stack(narrow, narrow.num_layers, two_sided=True, rngs=rngs)
        self.out = Projection((size,), (outputs,), ("embed", None), narrow, rngs=rngs, scale=scale)

    def __call__(self, states_BKD: jax.Array, seen: Patches, hidden: Patches) -> jax.Array:
        """What is said of the hidden patches, float32 [B, M, outputs].

        Args:
            states_BKD: the encoder's hidden states of the seen patches, behind that of the class token if there is one.
            seen, hidden: where the patches lie.
        """
        size, dtype = self.config.embed_dim, compute_dtype(self.config)
        places_BKD, asked_BMD = waves_at(seen, size), waves_at(hidden, size)
        has_class = states_BKD.shape[1] - places_BKD.shape[1]  # the class token lies nowhere
        places_BKD = jnp.pad(places_BKD, ((0, 0), (has_class, 0), (0, 0)))
        x_BKD = self.narrow(states_BKD) + places_BKD.astype(dtype)
        x_BMD = (self.mask[...].astype(jnp.float32) + asked_BMD).astype(dtype)
        x_BLD = jnp.concatenate([x_BKD, x_BMD], axis=1)
        y_BLD = look_around(self.stack, x_BLD, jnp.ones(x_BLD.shape[:2], bool))
        return self.out(y_BLD[:, -x_BMD.shape[1] :]).astype(jnp.float32)


class MaskedAutoencoder(nnx.Module):
    """An encoder of pictures and a narrow decoder that paints what it has not seen.

    Args:
        config: with `vision`.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.encoder = encoder_of_patches(config, rngs=rngs)
        self.predictor = NarrowTransformer(config, config.vision.patch_values, rngs=rngs)

    def __call__(self, pictures: dict[str, jax.Array], seen_BK: jax.Array, hidden_BM: jax.Array) -> jax.Array:
        """Values of the hidden patches, float32 [B, M, P], in whatever scale they are trained on.

        Args:
            pictures: as `VisionEncoder.patches` takes them.
            seen_BK, hidden_BM: int32, numbers of patches.
        """
        return predicted(self.encoder, self.predictor, self.encoder.patches(pictures), seen_BK, hidden_BM)


class JointEmbedding(nnx.Module):
    """An encoder, a copy of it that follows it slowly and is trained by no gradient, and a narrow predictor.

    Args:
        config: with `vision`.
        momentum: share of itself that the copy keeps at each step.
    """

    untrained = ("target/",)

    def __init__(self, config: TransformerConfig, momentum: float, *, rngs: nnx.Rngs):
        check(
            config.param_dtype == "float32",
            f"a copy that follows slowly would stand still in {config.param_dtype}: set TransformerConfig.param_dtype "
            "= 'float32'",
        )
        self.momentum = momentum
        self.encoder = encoder_of_patches(config, rngs=rngs)
        self.target = nnx.clone(self.encoder)
        self.predictor = NarrowTransformer(config, self.encoder.config.embed_dim, rngs=rngs)

    def __call__(
        self, pictures: dict[str, jax.Array], seen_BK: jax.Array, hidden_BM: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What is said of hidden patches, and what the copy makes of them in sight of all: float32 [B, M, D] each.

        What the copy makes is without a gradient, and its numbers have mean 0 and deviation 1 in each patch.
        """
        patches = self.encoder.patches(pictures)
        said_BMD = predicted(self.encoder, self.predictor, patches, seen_BK, hidden_BM)
        states_BLD, _ = self.target.encode(self.target.embed(patches), patches.valid_BL)
        states_BLD = states_BLD[:, states_BLD.shape[1] - patches.valid_BL.shape[1] :]  # without the class token
        wanted_BMD = jax.nn.standardize(chosen(states_BLD, hidden_BM).astype(jnp.float32), epsilon=1e-5)
        return said_BMD, jax.lax.stop_gradient(wanted_BMD)

    def advance(self, metrics: Metrics) -> None:
        """Moves the copy towards the encoder, after each update."""
        del metrics
        keep = self.momentum
        follow = lambda old, new: keep * old + (1 - keep) * new  # noqa: E731
        nnx.update(self.target, jax.tree.map(follow, nnx.state(self.target), nnx.state(self.encoder)))


def encoder_of_patches(config: TransformerConfig, *, rngs: nnx.Rngs) -> VisionEncoder:
    """The encoder of a configuration, whose parameters all serve its patches.

    Raises:
        UserError: what pools them would not be trained.
    """
    check(
        config.vision.pooling != "attention",
        "where patches are hidden, nothing would train attention pooling: set Vision.pooling = 'mean' or 'class'",
    )
    return VisionEncoder(config, rngs=rngs)


def predicted(
    encoder: VisionEncoder, predictor: NarrowTransformer, patches: Patches, seen_BK: jax.Array, hidden_BM: jax.Array
) -> jax.Array:
    """What is said of hidden patches from the seen ones, float32 [B, M, outputs].

    Raises:
        UserError: these are not all patches of a picture.
    """
    told, there = seen_BK.shape[1] + hidden_BM.shape[1], patches.values_BLP.shape[1]
    check(
        told == there,
        f"the objective has {told} patches of a picture and the model {there}: patch_size (and tube) of Vision and of "
        "Pictures or Films must agree",
    )
    seen, hidden = patches.at(seen_BK), patches.at(hidden_BM)
    states_BKD, _ = encoder.encode(encoder.embed(seen), seen.valid_BL)
    return predictor(states_BKD, seen, hidden)

"""The model that a configuration and an objective ask for together."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from pretrain.core.errors import check
from pretrain.core.objective import ModelNeeds
from pretrain.models.config import TransformerConfig
from pretrain.models.diffusion import DiffusionTransformer
from pretrain.models.functional import FunctionalModel
from pretrain.models.layers import param
from pretrain.models.masked_vision import JointEmbedding, MaskedAutoencoder
from pretrain.models.speech import SpeechTransformer
from pretrain.models.transformer import Transformer
from pretrain.models.vision import TwoTowers, VisionEncoder
from pretrain.models.wave import WaveEncoder
from pretrain.models.world import WorldModel

PLAIN = ModelNeeds(architectures=("decoder", "encoder", "encoder_decoder", "embeddings", "vision", "two_towers"))


class WordVectors(nnx.Module):
    """Two tables of vectors, of words and of their contexts (Mikolov et al. 2013); contexts start at 0."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, heads: Sequence[str] = ()):
        check(not heads, "word vectors have no heads")
        check(config.vocab_size is not None, "TransformerConfig.vocab_size is not set")
        shape = (config.vocab_size, config.embed_dim)
        words = jax.random.uniform(rngs.params(), shape, config.param_dtype, -0.5, 0.5) / config.embed_dim
        self.words = param(words, ("vocab", "embed"))
        self.contexts = param(jnp.zeros(shape, config.param_dtype), ("vocab", "embed"))


class Replacer(nnx.Module):
    """ELECTRA's two encoders (Clark et al. 2020): a small generator and the model proper, with shared embeddings."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs, size: float):
        check(
            config.tie_embeddings,
            "ELECTRA's discriminator has no logits: TransformerConfig.tie_embeddings must be True",
        )
        heads = max(1, round(config.num_heads * size))
        small = dataclasses.replace(
            config, num_heads=heads, kv_heads=None, head_dim=config.query_dim, embed_dim=heads * config.query_dim,
            mlp_dim=max(1, round(config.mlp_dim * size)), embedding_dim=config.table_dim,
        )  # fmt: skip
        self.discriminator = Transformer(config, rngs=rngs, heads=("replaced",))
        self.generator = Transformer(small, rngs=rngs, heads=("masked",))
        for name in ("embedding", "position_embedding", "type_embedding", "embedding_norm"):
            setattr(self.generator, name, getattr(self.discriminator, name))


# Architectures beside the Transformer of text.
OTHERS: dict[str, Callable[..., nnx.Module]] = {
    "embeddings": WordVectors,
    "vision": VisionEncoder,
    "two_towers": TwoTowers,
}


def build_model(config: TransformerConfig, needs: ModelNeeds = PLAIN) -> FunctionalModel:
    """The model as pure functions, with the heads that an objective needs."""
    return FunctionalModel(lambda rngs: BACKBONES[needs.backbone](config, needs, rngs))


def _transformer(config: TransformerConfig, needs: ModelNeeds, rngs: nnx.Rngs) -> nnx.Module:
    if config.architecture in OTHERS:
        return OTHERS[config.architecture](config, rngs=rngs, heads=needs.heads)
    if needs.generator:
        return Replacer(config, rngs=rngs, size=needs.generator)
    return Transformer(config, rngs=rngs, heads=needs.heads, ahead=needs.ahead)


# what an objective may name in `ModelNeeds.backbone`
BACKBONES: dict[str, Callable[[TransformerConfig, ModelNeeds, nnx.Rngs], nnx.Module]] = {
    "transformer": _transformer,
    "diffusion": lambda config, needs, rngs: DiffusionTransformer(config, needs.shape, rngs=rngs),
    "speech": lambda config, needs, rngs: SpeechTransformer(config, needs.shape, rngs=rngs),
    "wave": lambda config, needs, rngs: WaveEncoder(config, needs.shape, rngs=rngs),
    "world": lambda config, needs, rngs: WorldModel(config, needs.shape, rngs=rngs),
    "masked_autoencoder": lambda config, needs, rngs: MaskedAutoencoder(config, rngs=rngs),
    "joint_embedding": lambda config, needs, rngs: JointEmbedding(config, needs.momentum, rngs=rngs),
}

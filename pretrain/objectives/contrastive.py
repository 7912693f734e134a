"""Contrastive learning: pictures and their captions (CLIP, SigLIP, LiT), two views of a picture (SimCLR), a sentence
and itself (SimCSE). The loss compares all rows of the global batch, on any mesh and in parts (`similarity.py`).

CLIP: Radford et al. 2021; SigLIP: Zhai et al. 2023; LiT: Zhai et al. 2022; SimCLR: Chen et al. 2020; SimCSE: Gao et al.
2021.

Axes: B batch · L length · V views · H height · W width · C channels · D embed · J joint space.
"""

import dataclasses
from typing import Any, Literal

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms
from pretrain.objectives.examples import Examples, count_unusable, padded_text, text_spec
from pretrain.objectives.pictures import Pictures
from pretrain.objectives.similarity import Sums, info_nce, sigmoid_pairs


class Contrastive(Examples):
    """What all of them share. The head gives rows of `first` and `second`, float32 [B, J], any factors included."""

    couples_batch = True
    rows: int

    def head(self, model: Any, hidden: Any, batch: dict[str, jax.Array]) -> Any:
        del model, batch
        return hidden

    def total(self, sums: list[Sums], batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """The mean of several directions as a term, and how often the own partner came first."""
        weight = jnp.sum(batch["loss_weights"], dtype=jnp.float32)
        loss, first = (sum(getattr(each, name) for each in sums) / len(sums) for name in Sums._fields)
        return {"contrastive": Term(loss, weight)}, {"first": (first, weight), **count_unusable(batch)}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ImageText(Contrastive):
    """Pictures and captions of one batch find each other.

    Attributes:
        pictures: views of the pictures.
        text_length: tokens of a caption, its EOS included.
        loss_kind: "softmax" (CLIP, both directions) or "sigmoid" (SigLIP, each pair by itself).
        rows: of the matrix of pairs that are computed at once, over all devices.
        frozen: a tower that is not trained, "image" or "text" (LiT); set Optimizer.frozen = ("image/",) as well.
    """

    pictures: Pictures = dataclasses.field(default_factory=Pictures)
    text_length: int = 32
    loss_kind: Literal["softmax", "sigmoid"] = "softmax"
    rows: int = 4096
    frozen: Literal["", "image", "text"] = ""

    features = ("image", "tokens")

    def __post_init__(self):
        check_fields(self)
        check(self.text_length >= 2, f"ImageText.text_length must be 2 or more, got {self.text_length}")
        check(self.rows >= 1, f"ImageText.rows must be 1 or more, got {self.rows}")

    @property
    def model_needs(self) -> ModelNeeds:
        heads = ("temperature", *(("pair_bias",) if self.loss_kind == "sigmoid" else ()))
        return ModelNeeds(architectures=("two_towers",), heads=heads, chunkable=False)

    def example(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return padded_text(record["tokens"], self.text_length) | self.pictures.view(record["image"], rng)

    def example_spec(self) -> dict[str, ArraySpec]:
        return text_spec(self.text_length) | self.pictures.spec()

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        image_BJ = model.encode_image(model.image.patches(batch))
        text_BJ = model.encode_text(batch["tokens"], batch["segment_ids"])
        image_BJ = jax.lax.stop_gradient(image_BJ) if self.frozen == "image" else image_BJ
        text_BJ = jax.lax.stop_gradient(text_BJ) if self.frozen == "text" else text_BJ
        temperature = jnp.exp(jnp.minimum(model.log_temperature[...].astype(jnp.float32), jnp.log(100.0)))
        image_BJ = temperature * image_BJ
        if self.loss_kind == "sigmoid":  # the bias as one more dimension
            bias_B1 = jnp.broadcast_to(model.pair_bias[...].astype(jnp.float32), (len(image_BJ), 1))
            image_BJ = jnp.concatenate([image_BJ, bias_B1], axis=1)
            text_BJ = jnp.concatenate([text_BJ, jnp.ones_like(bias_B1)], axis=1)
        rows = jnp.sum(batch["loss_weights"])
        return Output({"first": image_BJ, "second": text_BJ}, metrics={"temperature": (temperature * rows, rows)})

    def loss(self, outputs: Any, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        image_BJ, text_BJ, weights_B = outputs["first"], outputs["second"], batch["loss_weights"]
        if self.loss_kind == "sigmoid":
            return self.total([sigmoid_pairs(image_BJ, text_BJ, weights_B, rows=self.rows)], batch)
        both = [(image_BJ, text_BJ), (text_BJ, image_BJ)]
        return self.total([info_nce(a_BJ, b_BJ, weights_B, rows=self.rows) for a_BJ, b_BJ in both], batch)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SimCLR(Contrastive):
    """Two views of one picture find each other among both views of all others.

    Attributes:
        pictures: what a view changes; the paper's are area (0.08, 1), flips, colours 1, grey 0.2, blur left out.
        temperature: what products of unit vectors are divided by.
        rows: of the matrix of pairs that are computed at once, over all devices.
    """

    pictures: Pictures = dataclasses.field(default_factory=Pictures)
    temperature: float = 0.1
    rows: int = 4096

    features = ("image",)
    model_needs = ModelNeeds(architectures=("vision",), heads=("projection",), chunkable=False)

    def __post_init__(self):
        check_fields(self)
        check(self.temperature > 0, f"SimCLR.temperature must be > 0, got {self.temperature}")
        check(self.pictures.patches is None, "SimCLR compares pictures of one size: Pictures.patches must be None")

    def example(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"views": np.stack([self.pictures.view(record["image"], rng)["images"] for _ in range(2)])}

    def example_spec(self) -> dict[str, ArraySpec]:
        spec = self.pictures.spec()["images"]
        return {"views": ArraySpec((2, *spec.shape), spec.dtype, (None, *spec.axes))}

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        views_BVHWC = batch["views"]
        images = views_BVHWC.reshape(-1, *views_BVHWC.shape[2:])
        z_BVJ = model.projection_head(model(model.patches({"images": images})))
        z_BVJ = scaled_unit(z_BVJ, self.temperature).reshape(len(views_BVHWC), 2, -1)
        return Output({"first": z_BVJ[:, 0], "second": z_BVJ[:, 1]})

    def loss(self, outputs: Any, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        a_BJ, b_BJ, weights_B = outputs["first"], outputs["second"], batch["loss_weights"]
        both = [(a_BJ, b_BJ), (b_BJ, a_BJ)]
        return self.total([info_nce(q, k, weights_B, rows=self.rows, others=True) for q, k in both], batch)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SimCSE(Contrastive):
    """A sentence finds itself under another dropout of its embeddings, among the other sentences of the batch.

    The paper drops activations in all of BERT's layers; here it is those of the first.

    Attributes:
        text_length: tokens of a sentence, its EOS included.
        dropout: share of the embeddings' values that is dropped.
        temperature: what products of unit vectors are divided by.
        rows: of the matrix of pairs that are computed at once, over all devices.
    """

    text_length: int = 32
    dropout: float = 0.1
    temperature: float = 0.05
    rows: int = 4096

    features = ("tokens",)
    model_needs = ModelNeeds(architectures=("encoder",), chunkable=False)

    def __post_init__(self):
        check_fields(self)
        check(0 < self.dropout < 1, f"SimCSE.dropout must be between 0 and 1, got {self.dropout}")
        check(self.temperature > 0, f"SimCSE.temperature must be > 0, got {self.temperature}")

    def example(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        seeds = rng.integers(1 << 32, size=2, dtype=np.uint32)
        return padded_text(record["tokens"], self.text_length) | {"seeds": seeds}

    def example_spec(self) -> dict[str, ArraySpec]:
        return text_spec(self.text_length) | {"seeds": ArraySpec((2,), "uint32", (None,))}

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        length, embed = self.text_length, model.config.embed_dim

        def kept(seed):
            return jax.random.bernoulli(jax.random.key(seed), 1 - self.dropout, (length, embed)) / (1 - self.dropout)

        def encode(seeds_B):
            segments_BL = batch["segment_ids"]
            positions_BL = jnp.broadcast_to(jnp.arange(length), segments_BL.shape)
            factors_BLD = jax.vmap(kept)(seeds_B)
            hidden_BLD = model(batch["tokens"], segments_BL, positions_BL, causal=False, factors_BLD=factors_BLD).hidden
            sums_BD = jnp.einsum("bld,bl->bd", hidden_BLD, (segments_BL > 0).astype(hidden_BLD.dtype))
            return scaled_unit(sums_BD, self.temperature)

        return Output({"first": encode(batch["seeds"][:, 0]), "second": encode(batch["seeds"][:, 1])})

    def loss(self, outputs: Any, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        return self.total([info_nce(outputs["first"], outputs["second"], batch["loss_weights"], rows=self.rows)], batch)


def scaled_unit(x_BJ: jax.Array, temperature: float) -> jax.Array:
    """Vectors whose products are the cosines over the temperature, float32."""
    x_BJ = x_BJ.astype(jnp.float32)
    norm_B1 = jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x_BJ), axis=-1, keepdims=True), 1e-12))
    return x_BJ / (norm_B1 * temperature**0.5)

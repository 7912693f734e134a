"""Replaced-token detection (ELECTRA: Clark et al. 2020, arXiv:2003.10555).

A small generator fills in hidden tokens; the model says of each token whether it is the text's own. The generator
learns as a masked language model; no gradient goes through what it draws. What it draws follows from a number that each
row brings along, so that it is the same on any mesh and in microbatches.

Axes: B batch · L length · K places of a row that may be hidden · V vocabulary.
"""

import dataclasses

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms
from pretrain.objectives.losses import binary_cross_entropy, put_places, take_places, weighted_sum
from pretrain.objectives.masked import Masked, masked_loss


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ReplacedTokens(Masked):
    """Detects tokens that a generator has put in place of hidden ones.

    Attributes:
        mask, random: as in `Masked`; here all hidden tokens are shown to the generator as the mask.
        generator_size: width of the generator over the model's; 1/4 to 1/2 did best in the paper.
        coefficient: of the detection beside the generator's loss.
    """

    mask: float = 1.0
    random: float = 0.0
    generator_size: float = 1 / 3
    coefficient: float = 50.0

    def __post_init__(self):
        super().__post_init__()
        check(
            0 < self.generator_size <= 1,
            f"ReplacedTokens.generator_size must be above 0 and at most 1, got {self.generator_size}",
        )
        check(self.coefficient > 0, f"ReplacedTokens.coefficient must be > 0, got {self.coefficient}")

    @property
    def model_needs(self) -> ModelNeeds:
        return ModelNeeds(architectures=("encoder",), chunkable=False, generator=self.generator_size)

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """As `Masked.finish`, with `noise`: int32 [rows], what the generator's draws follow from."""
        batch = super().finish(packed, rng)
        return batch | {"noise": rng.integers(0, 1 << 31, len(batch["tokens"]), np.int32, endpoint=False)}

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        return super().batch_spec(batch_size, length) | {"noise": ArraySpec((batch_size,), "int32", ("batch",))}

    def forward(self, model, batch: dict[str, jax.Array]) -> Output:
        """Fills in, then looks at the result."""
        places_BK, hidden_BK = batch["target_positions"], batch["loss_weights"] > 0
        context = batch["segment_ids"], batch["positions"]
        guess = model.generator(batch["tokens"], *context, causal=False)
        logits_BKV = model.generator.masked_logits(take_places(guess.hidden, places_BK))
        drawn_BK = draw(logits_BKV, batch["noise"])
        text_BL = put_places(batch["tokens"], places_BK, batch["targets"], hidden_BK)
        shown_BL = put_places(text_BL, places_BK, drawn_BK, hidden_BK)
        output = model.discriminator(shown_BL, *context, causal=False)
        return Output(
            {"generator": logits_BKV, "discriminator": output.hidden, "replaced": shown_BL != text_BL},
            {**output.terms, **{f"generator_{name}": term for name, term in guess.terms.items()}},
            {**output.metrics, **{f"generator_{name}": count for name, count in guess.metrics.items()}},
        )

    def head(self, model, hidden: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return hidden | {"discriminator": model.discriminator.replaced_head(hidden["discriminator"])}

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        terms, metrics = masked_loss(outputs["generator"], batch, "generator")
        logits_BL, replaced_BL = outputs["discriminator"], outputs["replaced"]
        weights_BL = (batch["segment_ids"] > 0).astype(jnp.float32)
        weight = jnp.sum(weights_BL)
        nats = weighted_sum(binary_cross_entropy(logits_BL, replaced_BL), weights_BL)
        terms["replaced"] = Term(nats, weight, self.coefficient)
        right_BL = ((logits_BL > 0) == replaced_BL).astype(jnp.float32)
        changed_BL = weights_BL * replaced_BL
        metrics["replaced_accuracy"] = (weighted_sum(right_BL, weights_BL), weight)
        metrics["replaced_recall"] = (weighted_sum(right_BL, changed_BL), jnp.sum(changed_BL))
        return terms, metrics


def draw(logits_BKV: jax.Array, noise_B: jax.Array) -> jax.Array:
    """A token for each place from its distribution, int32 [batch, places]; carries no gradient (Gumbel-max)."""

    def of_row(logits_KV: jax.Array, noise: jax.Array) -> jax.Array:
        return jnp.argmax(logits_KV + jax.random.gumbel(jax.random.key(noise), logits_KV.shape), axis=-1)

    return jax.vmap(of_row)(jax.lax.stop_gradient(logits_BKV), noise_B).astype(jnp.int32)

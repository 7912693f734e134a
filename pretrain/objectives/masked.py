"""Masked language modelling, masked anew in every epoch (RoBERTa: Liu et al. 2019, arXiv:1907.11692; BERT's 80/10/10).

Only hidden tokens go through the head, a fixed number of places a row: at 15 % that is a seventh of the logits.

Axes: B batch · L length · K places of a row that may be hidden · V vocabulary.
"""

import dataclasses
import math
from typing import Self

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms, Vocabulary
from pretrain.objectives import masking
from pretrain.objectives.base import Objective
from pretrain.objectives.losses import cross_entropy, take_places, weighted_sum


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """Predicts hidden tokens from both sides, within the document.

    Attributes:
        rate: share of the tokens that are predicted.
        mask, random: shares of these that are shown as the mask, and as any other token; the rest is shown as it is.
        whole_words: words, as white space cuts them, are hidden whole.
        span_p: chance that a hidden span ends after a token (with `whole_words`, a word): 0.2 in SpanBERT; 1: no spans.
            Of a span, all tokens are shown as the mask, or all as others, or all as they are.
        max_span: longest span.
    """

    rate: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    whole_words: bool = False
    span_p: float = 1.0
    max_span: int = 10

    features = ("tokens",)
    sentinels = 1
    model_needs = ModelNeeds(architectures=("encoder",), heads=("masked",), chunkable=False)

    def __post_init__(self):
        check_fields(self)
        kind = type(self).__name__
        check(0 < self.rate < 1, f"{kind}.rate must be between 0 and 1, got {self.rate}")
        check(
            self.mask >= 0 and self.random >= 0 and self.mask + self.random <= 1,
            f"{kind}: mask ({self.mask}) and random ({self.random}) are shares: not negative, together at most 1",
        )
        check(0 < self.span_p <= 1, f"{kind}.span_p must be above 0 and at most 1, got {self.span_p}")
        check(self.max_span >= 1, f"{kind}.max_span must be >= 1, got {self.max_span}")

    def bind(self, vocabulary: Vocabulary) -> Self:
        check(
            not self.whole_words or vocabulary.starts_word is not None,
            f"{type(self).__name__}.whole_words needs a tokenizer that says where words begin",
        )
        return super().bind(vocabulary)

    def budget(self, length: int) -> int:
        """K, places of a row that may be hidden."""
        return math.ceil(self.rate * length)

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Hides tokens.

        Args:
            packed: `tokens`, `segment_ids`, `positions`, int32 [rows, length].
            rng: draws which, and what is shown instead.
        """
        return self.hide(packed["tokens"], packed["segment_ids"], packed["positions"], rng)

    def hide(
        self, tokens_BL: np.ndarray, segment_ids_BL: np.ndarray, positions_BL: np.ndarray, rng: np.random.Generator
    ) -> Batch:
        """The arrays of `batch_spec` for these rows."""
        hidden = masking.choose(
            tokens_BL, segment_ids_BL, self.vocabulary, rng, rate=self.rate, budget=self.budget(tokens_BL.shape[1]),
            whole_words=self.whole_words, span_p=self.span_p, max_span=self.max_span,
        )  # fmt: skip
        shares = {"mask": self.mask, "random": self.random, "by_unit": self.span_p < 1}
        return {
            "tokens": masking.replace(tokens_BL, hidden, self.vocabulary, rng, **shares),
            "segment_ids": segment_ids_BL,
            "positions": positions_BL,
            "target_positions": hidden.positions_BK,
            "targets": hidden.targets_BK,
            "loss_weights": hidden.weights_BK,
        }

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        rows, places = ((batch_size, length), ("batch", "length")), ((batch_size, self.budget(length)), ("batch", None))
        spec = {name: ArraySpec(rows[0], "int32", rows[1]) for name in ("tokens", "segment_ids", "positions")}
        spec |= {name: ArraySpec(places[0], "int32", places[1]) for name in ("target_positions", "targets")}
        return spec | {"loss_weights": ArraySpec(places[0], "float32", places[1])}

    def forward(self, model, batch: dict[str, jax.Array]) -> Output:
        output = model(batch["tokens"], batch["segment_ids"], batch["positions"], causal=False)
        return output._replace(hidden=take_places(output.hidden, batch["target_positions"]))

    def head(self, model, hidden: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        return model.masked_logits(hidden)

    def loss(self, logits_BKV: jax.Array, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        return masked_loss(logits_BKV, batch, "masked")


def masked_loss(logits_BKV: jax.Array, batch: dict[str, jax.Array], name: str) -> tuple[Terms, Metrics]:
    """The term `name` and the metric `<name>_accuracy` of the hidden tokens."""
    weights_BK = batch["loss_weights"]
    nll_BK, _ = cross_entropy(logits_BKV, batch["targets"])
    hits_BK = (jnp.argmax(logits_BKV, -1) == batch["targets"]).astype(jnp.float32)
    weight = jnp.sum(weights_BK)
    terms = {name: Term(weighted_sum(nll_BK, weights_BK), weight)}
    return terms, {f"{name}_accuracy": (weighted_sum(hits_BK, weights_BK), weight)}

"""Skip-gram and CBOW with negative sampling (Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546).

Frequent words are left out of a row before windows are cut, each centre draws the width of its own window, and noise
words are drawn from the unigram counts to the power of .75, all on the host. What differs from the papers: noise words
are shared by the centres of a block, each counted so that its expected share of the loss is the same, because scores
of a block against its neighbourhood and its noise are then matrix products (Ji et al. 2016, arXiv:1604.04661).

Axes: B batch · P packed words of a row · L words of a row that stay · N blocks · C centres of a block · W words around
a block · K noise words of a block · D embed.
"""

import abc
import dataclasses
import math
from typing import Any, Self

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms, Vocabulary
from pretrain.objectives.base import Objective


def keep_probabilities(counts: np.ndarray, subsample: float) -> np.ndarray:
    """With what probability an occurrence of each word stays, as word2vec's code has it: sqrt(t/f) + t/f, at most 1.

    Args:
        counts: int [V]; ids that no text holds have 0 and never stay.
        subsample: t, the frequency above which words are thinned; 0 keeps all.
    """
    frequency = np.maximum(counts, 1) / max(counts.sum(), 1)
    ratio = subsample / frequency if subsample > 0 else np.ones(len(counts))
    return np.where(counts > 0, np.minimum(np.sqrt(ratio) + ratio, 1), 0).astype(np.float32)


def around(x_BN: jax.Array, block: int, window: int) -> jax.Array:
    """Each block of a row with the `window` elements before and after it: [B, N * C, ...] -> [B, N, C + 2 window, ...].

    Beyond the ends of a row stand zeros.
    """
    blocks = x_BN.reshape(x_BN.shape[0], -1, block, *x_BN.shape[2:])
    blocks = jnp.pad(blocks, ((0, 0), (1, 1), *((0, 0),) * (blocks.ndim - 2)))
    return jnp.concatenate([blocks[:, :-2, block - window :], blocks[:, 1:-1], blocks[:, 2:, :window]], axis=2)


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)), with a slope of one operation."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda slope, _, x: slope * jax.nn.sigmoid(x))


@dataclasses.dataclass(frozen=True)
class ContextWords(Objective, abc.ABC):
    """What skip-gram and CBOW share: which words stay, windows, noise.

    Attributes:
        window: words on each side of a centre, at most; each centre draws 1 to `window`.
        negatives: noise words for each word that is predicted.
        subsample: frequency above which words are thinned; 0 thins none.
        exponent: of the counts in the distribution of noise words.
        block: centres that share noise words.
        noise: noise words of a block.
    """

    window: int = 5
    negatives: int = 5
    subsample: float = 1e-3
    exponent: float = 0.75
    block: int = 32
    noise: int = 22

    features = ("tokens",)
    model_needs = ModelNeeds(architectures=("embeddings",), chunkable=False)  # windows reach over the cuts of a row

    def __post_init__(self):
        check_fields(self)
        kind = type(self).__name__
        for name, least in (("window", 1), ("negatives", 1), ("noise", 1), ("subsample", 0)):
            check(getattr(self, name) >= least, f"{kind}.{name} must be >= {least}, got {getattr(self, name)}")
        check(self.block >= self.window, f"{kind}.block ({self.block}) must be >= window ({self.window})")

    def bind(self, vocabulary: Vocabulary) -> Self:
        """This objective with the words' counts.

        Raises:
            UserError: the tokenizer does not count words.
        """
        check(
            vocabulary.counts is not None and vocabulary.counts.any(),
            f"{type(self).__name__} needs to know how often each word occurs: set TokenizerConfig.kind = 'words' and "
            "cache again",
        )
        bound, counts = super().bind(vocabulary), vocabulary.counts.astype(np.float64)
        keep = keep_probabilities(counts, self.subsample)
        noise = np.cumsum(np.where(counts > 0, counts**self.exponent, 0))
        for name, value in (("_keep", keep), ("_kept", counts @ keep / counts.sum()), ("_noise", noise / noise[-1])):
            object.__setattr__(bound, name, value)
        return bound

    def packed_length(self, length: int) -> int:
        """Words of a row of which about `length` stay."""
        return length if self.vocabulary is None else math.ceil(length / self._kept)

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Draws which words stay, the windows, and the noise.

        Words that stay beyond the length of a row are left out as well; a row with fewer of them ends in padding.

        Args:
            packed: `tokens`, `segment_ids`, int32 [B, P].
            rng: draws.
        """
        words_BP, segments_BP = packed["tokens"], packed["segment_ids"]
        rows, length = len(words_BP), math.floor(words_BP.shape[1] * self._kept + 1e-6)
        stays_BP = (rng.random(words_BP.shape, np.float32) < self._keep[words_BP]) & (segments_BP > 0)
        place_BP = np.cumsum(stays_BP, axis=1) - 1
        stays_BP &= place_BP < length
        row, place = np.nonzero(stays_BP)[0], place_BP[stays_BP]
        words_BL, segments_BL = np.zeros((2, rows, length), np.int32)
        words_BL[row, place], segments_BL[row, place] = words_BP[stays_BP], segments_BP[stays_BP]
        blocks = -(-length // self.block)
        drawn_BNK = np.searchsorted(self._noise, rng.random((rows, blocks, self.noise)), side="right")
        return {
            "tokens": words_BL,
            "segment_ids": segments_BL,
            "windows": rng.integers(1, self.window, words_BL.shape, np.int32, endpoint=True) * (segments_BL > 0),
            "noise": drawn_BNK.astype(np.int32),
        }

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        row = ArraySpec((batch_size, length), "int32", ("batch", None))
        noise = ArraySpec((batch_size, -(-length // self.block), self.noise), "int32", ("batch", None, None))
        return {"tokens": row, "segment_ids": row, "windows": row, "noise": noise}

    def blocks(self, x_BL: jax.Array) -> jax.Array:
        """[B, L, ...] -> [B, N, C, ...], zeros at the end."""
        extra = -x_BL.shape[1] % self.block
        x_BL = jnp.pad(x_BL, ((0, 0), (0, extra), *((0, 0),) * (x_BL.ndim - 2)))
        return x_BL.reshape(x_BL.shape[0], -1, self.block, *x_BL.shape[2:])

    def neighbourhood(self, x_BL: jax.Array) -> jax.Array:
        """[B, L, ...] -> [B, N, W, ...]: what stands around and in each block."""
        x_BNC = self.blocks(x_BL)
        return around(x_BNC.reshape(len(x_BNC), -1, *x_BNC.shape[3:]), self.block, self.window)

    def pairs(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Which words are in which centre's window, 0 or 1, float32 [B, N, C, W]."""
        segments_BL = batch["segment_ids"]
        distance_CW = jnp.arange(self.block + 2 * self.window) - self.window - jnp.arange(self.block)[:, None]
        near = jnp.abs(distance_CW) <= self.blocks(batch["windows"])[..., None]
        same = self.blocks(segments_BL)[..., None] == self.neighbourhood(segments_BL)[:, :, None]
        inside = (self.blocks(segments_BL) > 0)[..., None]
        return (near & same & inside & (distance_CW != 0)).astype(jnp.float32)

    def head(self, model: Any, hidden: Any, batch: dict[str, jax.Array]) -> Any:
        del model, batch
        return hidden

    def noise_loss(self, scores_BNCK: jax.Array, predicted_BNC: jax.Array) -> jax.Array:
        """Sum of -log(1 - p) of noise words, in proportion to what each centre predicts."""
        per_centre_BNC = jnp.sum(softplus(scores_BNCK), axis=-1) * (self.negatives / self.noise)
        return jnp.sum(per_centre_BNC * predicted_BNC)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SkipGram(ContextWords):
    """Predicts the words around each word; attributes as in `ContextWords`."""

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        words_BNCD = self.blocks(model.words[...][batch["tokens"]])
        contexts_BNWD = self.neighbourhood(model.contexts[...][batch["tokens"]])
        others_BNXD = jnp.concatenate([contexts_BNWD, model.contexts[...][batch["noise"]]], axis=2)
        return Output(jnp.einsum("bncd,bnxd->bncx", words_BNCD, others_BNXD))  # X = W + K: one product for both

    def loss(self, outputs: Any, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        pairs_BNCW = self.pairs(batch)
        predicted_BNC = jnp.sum(pairs_BNCW, axis=-1)
        noise_BNCK = jnp.repeat(predicted_BNC[..., None] * (self.negatives / self.noise), self.noise, axis=-1)
        weights_BNCX = jnp.concatenate([pairs_BNCW, noise_BNCK], axis=-1)
        signs_X = jnp.where(jnp.arange(weights_BNCX.shape[-1]) < pairs_BNCW.shape[-1], -1.0, 1.0)
        total = jnp.sum(softplus(signs_X * outputs) * weights_BNCX)
        return {"negative_sampling": Term(total, jnp.sum(predicted_BNC))}, {}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ContinuousBagOfWords(ContextWords):
    """Predicts each word from the mean of the words around it; attributes as in `ContextWords`."""

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        pairs_BNCW = self.pairs(batch)
        shares_BNCW = pairs_BNCW / jnp.maximum(jnp.sum(pairs_BNCW, axis=-1, keepdims=True), 1)
        around_BNWD = self.neighbourhood(model.words[...][batch["tokens"]])
        means_BNCD = jnp.einsum("bncw,bnwd->bncd", shares_BNCW, around_BNWD)
        centres_BNCD = self.blocks(model.contexts[...][batch["tokens"]])
        noise_BNKD = model.contexts[...][batch["noise"]]
        found_BNC = jnp.sum(means_BNCD * centres_BNCD, axis=-1)
        return Output((found_BNC, jnp.einsum("bncd,bnkd->bnck", means_BNCD, noise_BNKD)))

    def loss(self, outputs: Any, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        scores_BNC, noise_BNCK = outputs
        predicted_BNC = (jnp.sum(self.pairs(batch), axis=-1) > 0).astype(jnp.float32)
        total = jnp.sum(softplus(-scores_BNC) * predicted_BNC) + self.noise_loss(noise_BNCK, predicted_BNC)
        return {"negative_sampling": Term(total, jnp.sum(predicted_BNC))}, {}

"""What models and objectives say to each other: loss terms, metrics, a model's output, and what a model must be.

Losses are sums with their own weights, never means, so that gradient accumulation, uneven hosts and several terms stay
exact: the trained quantity is  sum over terms of  coefficient * total(sum) / total(weight),  with totals over the whole
global batch.
"""

import dataclasses
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of the loss.

    Attributes:
        sum: float32 scalar, summed over the examples at hand.
        weight: float32 scalar, what to divide the total by; a function of the batch alone, never of model outputs.
        coefficient: importance of the term; fixed when the step is traced.
    """

    sum: jax.Array
    weight: jax.Array
    coefficient: float = dataclasses.field(default=1.0, metadata={"static": True})


Terms = dict[str, Term]
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight); sums may be arrays


class LogitReading(NamedTuple):
    """What a loss reads of logits, [batch, length] each.

    Attributes:
        log_z, target, mean: float32; log-partition, the target's logit, and the mean over the vocabulary.
        best: int32, the id of the greatest logit, of several the least; no id where logits are not numbers.
    """

    log_z: jax.Array
    target: jax.Array
    mean: jax.Array
    best: jax.Array


class Output(NamedTuple):
    """What a forward pass gives, before the head.

    Attributes:
        hidden: array, or tree of arrays, that the head takes; [batch, length, embed] for a Transformer.
        terms: losses that need no head, e.g. of a router.
        metrics: counts that need no head.
    """

    hidden: Any
    terms: Terms = {}  # noqa: RUF012 (never changed)
    metrics: Metrics = {}  # noqa: RUF012


@dataclasses.dataclass(frozen=True)
class ModelNeeds:
    """What a model must be to serve an objective.

    Attributes:
        architectures: values of `TransformerConfig.architecture` that will do.
        heads: names in `models.heads.HEADS` of what is read off the hidden states beside plain logits.
        chunkable: whether head and loss may be computed on parts of the length one after another.
        ahead: further tokens that modules of their own predict (multi-token prediction).
        generator: size of a second, smaller model over the model's, which replaces tokens (ELECTRA); 0 for none.
        backbone: name in `models.build.BACKBONES` of what the layers are put into.
        shape: sizes of what a backbone takes in where that is not tokens; hashable.
        momentum: share of itself that a copy of the encoder keeps as it follows the encoder step by step (JEPA).
    """

    architectures: tuple[str, ...]
    heads: tuple[str, ...] = ()
    chunkable: bool = True
    ahead: int = 0
    generator: float = 0.0
    backbone: str = "transformer"
    shape: Hashable | None = None
    momentum: float = 0.0


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer that objectives use.

    Attributes:
        size: number of ids, sentinels included.
        pad_id, bos_id, eos_id: special ids.
        num_sentinels: ids at the end of the vocabulary that no text holds.
        starts_word: bool [size], ids whose text begins with white space or that are no text; None where not known.
        counts: int [size], occurrences in the text the tokenizer was trained on; None where it keeps none.
    """

    size: int
    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    num_sentinels: int = 0
    starts_word: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)
    counts: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def text_size(self) -> int:
        """Number of ids without sentinels."""
        return self.size - self.num_sentinels

    def sentinel(self, number: int) -> int:
        """The id of a sentinel; number 0 is the last of the vocabulary, as T5 counts them."""
        return self.size - 1 - number

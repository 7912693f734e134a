"""The contract of a self-supervised objective: what it asks of a record, a model and a batch.

An objective is one file. The host part (numpy) turns cached records into batches; the device part (jax) turns model
outputs into a loss. Losses are sums with their own weights, never means, so that gradient accumulation, uneven hosts
and several terms stay exact: the trained quantity is  sum over terms of  coefficient * total(sum) / total(weight),
with totals over the whole global batch.
"""

import abc
import dataclasses
from typing import Any

import jax
import numpy as np

from pretrain.core.batch import ArraySpec, Batch


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
Metrics = dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)


@dataclasses.dataclass(frozen=True)
class ModelNeeds:
    """What a model must be to serve an objective.

    Attributes:
        causal: whether a position must not see later ones.
        chunkable: whether the loss may be computed on parts of the length one after another.
    """

    causal: bool
    chunkable: bool = True


class Objective(abc.ABC):
    """A self-supervised task. Host methods are pure in (inputs, rng); device methods are pure and traceable."""

    #: names of the record's features that are read from the cache.
    features: tuple[str, ...] = ("tokens",)
    #: whether `finish` draws random numbers.
    random_finish: bool = True
    model_needs: ModelNeeds

    def prepare(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Changes a record before packing, its length too; `prepared_length` says to what."""
        del rng
        return record

    prepare.identity = True  # tells the loader that it need not call this one, record by record

    def prepared_length(self, lengths: np.ndarray) -> np.ndarray:
        """Lengths after `prepare`, from the lengths before, so that packing can be planned without reading."""
        return lengths

    @abc.abstractmethod
    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Turns packed rows into the batch the model and the loss get: inputs, targets, masks, weights."""

    @abc.abstractmethod
    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        """Names, shapes, dtypes and logical axes of the arrays `finish` returns."""

    @abc.abstractmethod
    def forward(self, model: Any, batch: dict[str, jax.Array]) -> jax.Array:
        """Runs the backbone: hidden states [batch, length, embed], before the head."""

    @abc.abstractmethod
    def loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """Loss terms and metrics from the head's output. With `chunkable`, also called on parts of the length."""

"""The contract of a self-supervised objective: what it asks of a record, a model and a batch.

An objective is one file. The host part (numpy) turns cached records into batches; the device part (jax) turns model
outputs into a loss. A new one is found by its file: every module of this folder is imported before gin files are read.
"""

import abc
import copy
import importlib
import pkgutil
from typing import Any, Self

import jax
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import UserError, check
from pretrain.core.objective import Metrics, ModelNeeds, Output, Terms, Vocabulary


class Objective(abc.ABC):
    """A self-supervised task. Host methods are pure in (inputs, rng); device methods are pure and traceable."""

    #: names of the record's features that are read from the cache.
    features: tuple[str, ...] = ("tokens",)
    #: whether a record goes into a row as a whole, however long; others are cut into pieces that fit.
    whole_records: bool = False
    #: whether an example's loss depends on other rows of the batch. Accumulation then goes by cached representations
    #: (`train.coupled`): head's outputs must be arrays [batch, ...], and loss a function of them and the batch alone.
    couples_batch: bool = False
    #: whether `finish` draws random numbers.
    random_finish: bool = True
    #: what the model must be; may depend on the objective's fields.
    model_needs: ModelNeeds
    #: ids that no text holds, for masks and the like: TokenizerConfig.extra_ids must be at least this.
    sentinels: int = 0
    #: length of what an encoder reads, where that is not the row (sound, patches that are seen), for counting FLOPs.
    encoded_length: int | None = None
    #: whether a trained model continues text from left to right.
    generates: bool = False
    #: the tokenizer's ids, once `bind` has said so.
    vocabulary: Vocabulary | None = None

    def bind(self, vocabulary: Vocabulary) -> Self:
        """This objective with the ids of a tokenizer.

        Raises:
            UserError: the tokenizer has too few sentinels.
        """
        check(
            vocabulary.num_sentinels >= self.sentinels,
            f"{type(self).__name__} needs {self.sentinels} ids that no text holds and the tokenizer has "
            f"{vocabulary.num_sentinels}: set TokenizerConfig.extra_ids = {self.sentinels} and cache again",
        )
        bound = copy.copy(self)
        object.__setattr__(bound, "vocabulary", vocabulary)  # objectives are frozen dataclasses
        return bound

    def packed_length(self, length: int) -> int | dict[str, int]:
        """Elements of a packed row, by packed feature where they differ, for models of sequence length `length`."""
        return length

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
    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        """Runs the backbone: hidden states before the head, and losses that need no head."""

    def head(self, model: Any, hidden: Any, batch: dict[str, jax.Array]) -> Any:
        """What the loss is computed from; with `chunkable`, also called on parts of the length."""
        del batch
        return model.head(hidden)

    @abc.abstractmethod
    def loss(self, outputs: Any, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """Loss terms and metrics from the head's output. With `chunkable`, also called on parts of the length."""


def import_objectives() -> None:
    """Imports every module of this folder, so that gin files can name what is in them."""
    import pretrain.objectives

    for module in pkgutil.iter_modules(pretrain.objectives.__path__):
        importlib.import_module(f"pretrain.objectives.{module.name}")


def check_architecture(objective: Objective, architecture: str) -> None:
    """Whether a model can serve an objective.

    Raises:
        UserError: it cannot.
    """
    wanted = objective.model_needs.architectures
    if architecture not in wanted:
        raise UserError(
            f"{type(objective).__name__} needs a model of architecture {' or '.join(wanted)}, not {architecture}: set "
            f"TransformerConfig.architecture = '{wanted[0]}'"
        )

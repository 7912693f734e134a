"""Next-token prediction (GPT: Radford et al. 2018), over packed documents that do not see each other.

Axes: B batch · L length · V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms
from pretrain.objectives.base import Objective
from pretrain.objectives.losses import read_logits, weighted_sum


def decode(model: Any, batch: dict[str, jax.Array]) -> Output:
    """A decoder's pass over packed rows, in which all tokens of a segment look at its prefix, where it has one."""
    rows = batch["tokens"], batch["segment_ids"], batch["positions"]
    return model(*rows, causal=True, prefix_BL=batch.get("prefix_mask"))


def decoder_spec(batch_size: int, length: int, prefix: bool = False) -> dict[str, ArraySpec]:
    """The arrays of such a pass and of its loss."""
    shape, axes = (batch_size, length), ("batch", "length")
    names = ("tokens", "targets", "segment_ids", "positions")
    return {
        **{name: ArraySpec(shape, "int32", axes) for name in names},
        "loss_weights": ArraySpec(shape, "float32", axes),
        **({"prefix_mask": ArraySpec(shape, "bool", axes)} if prefix else {}),
    }


def token_loss(
    logits: Any, batch: dict[str, jax.Array], z_loss: float, label_smoothing: float
) -> tuple[Terms, Metrics]:
    """Cross-entropy of `targets` by `loss_weights`, further terms where their coefficients ask, and the accuracy."""
    weights_BL = batch["loss_weights"]
    read = read_logits(logits, batch["targets"])
    weight = jnp.sum(weights_BL)
    terms = {"cross_entropy": Term(weighted_sum(read.log_z - read.target, weights_BL), weight, 1 - label_smoothing)}
    if label_smoothing > 0:
        terms["uniform_cross_entropy"] = Term(weighted_sum(read.log_z - read.mean, weights_BL), weight, label_smoothing)
    if z_loss > 0:
        terms["z_loss"] = Term(weighted_sum(jnp.square(read.log_z), weights_BL), weight, z_loss)
    hits_BL = (read.best == batch["targets"]).astype(jnp.float32)
    return terms, {"accuracy": (weighted_sum(hits_BL, weights_BL), weight)}


def check_loss_fields(objective: Any) -> None:
    """Raises `UserError` where a coefficient of `token_loss` is out of range."""
    kind = type(objective).__name__
    check(objective.z_loss >= 0, f"{kind}.z_loss must be >= 0, got {objective.z_loss}")
    smoothing = objective.label_smoothing
    check(0 <= smoothing < 1, f"{kind}.label_smoothing must be in [0, 1), got {smoothing}")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Causal(Objective):
    """Predicts each token from those before it in the same document.

    Attributes:
        z_loss: coefficient of log(Z)^2, which keeps logits from drifting (PaLM, section 5); 0 turns it off.
        label_smoothing: part of each target that is spread over the vocabulary (Szegedy et al. 2016).
        source_weights: weight in the loss of the targets of a source, by name; 1 where it is not named.
    """

    z_loss: float = 0.0
    label_smoothing: float = 0.0
    source_weights: Mapping[str, float] | None = None

    features = ("tokens",)
    random_finish = False
    generates = True
    model_needs = ModelNeeds(architectures=("decoder",))
    passes = "decoder"  # which forward pass this is; objectives with the same one can share a batch

    def __post_init__(self):
        check_fields(self)
        check_loss_fields(self)
        for source, weight in (self.source_weights or {}).items():
            check(weight >= 0, f"{type(self).__name__}.source_weights: {source} must be >= 0, got {weight}")

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Inputs are targets shifted right by one; each segment starts from its `first_inputs`.

        Args:
            packed: `tokens`, `segment_ids`, `positions`, `first_inputs`, all int32 [rows, length]; `first_inputs` is
                read where a segment starts: BOS, or the token before it when a long document goes on. With
                `source_weights`, an array of that name, float32.
            rng: not used.
        """
        del rng
        targets_BL, segments_BL = packed["tokens"], packed["segment_ids"]
        inputs_BL = np.roll(targets_BL, 1, axis=1)
        inputs_BL[:, 0] = 0
        starts_BL = np.ones_like(segments_BL, bool)
        starts_BL[:, 1:] = segments_BL[:, 1:] != segments_BL[:, :-1]
        inputs_BL = np.where(starts_BL, packed["first_inputs"], inputs_BL)
        weights_BL = (segments_BL > 0).astype(np.float32)
        if self.source_weights:
            weights_BL = weights_BL * packed["source_weights"]
        batch = {
            "tokens": inputs_BL.astype(np.int32),
            "targets": targets_BL,
            "segment_ids": segments_BL,
            "positions": packed["positions"],
            "loss_weights": weights_BL,
        }
        return batch

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        return decoder_spec(batch_size, length)

    def forward(self, model, batch: dict[str, jax.Array]) -> Output:
        return decode(model, batch)

    def loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        return token_loss(logits, batch, self.z_loss, self.label_smoothing)

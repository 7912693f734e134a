"""Next-token prediction (GPT: Radford et al. 2018), over packed documents that do not see each other.

Axes: B batch · L length · V vocabulary.
"""

import dataclasses

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms
from pretrain.objectives.base import Objective
from pretrain.objectives.losses import cross_entropy, weighted_sum


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Causal(Objective):
    """Predicts each token from those before it in the same document.

    Attributes:
        z_loss: coefficient of log(Z)^2, which keeps logits from drifting (PaLM, section 5); 0 turns it off.
    """

    z_loss: float = 0.0

    features = ("tokens",)
    random_finish = False
    generates = True
    model_needs = ModelNeeds(architectures=("decoder",))

    def __post_init__(self):
        check_fields(self)
        check(self.z_loss >= 0, f"Causal.z_loss must be >= 0, got {self.z_loss}")

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Inputs are targets shifted right by one; each segment starts from its `first_inputs`.

        Args:
            packed: `tokens`, `segment_ids`, `positions`, `first_inputs`, all int32 [rows, length]; `first_inputs` is
                read where a segment starts: BOS, or the token before it when a long document goes on.
            rng: not used.
        """
        del rng
        targets_BL, segments_BL = packed["tokens"], packed["segment_ids"]
        inputs_BL = np.roll(targets_BL, 1, axis=1)
        inputs_BL[:, 0] = 0
        starts_BL = np.ones_like(segments_BL, bool)
        starts_BL[:, 1:] = segments_BL[:, 1:] != segments_BL[:, :-1]
        inputs_BL = np.where(starts_BL, packed["first_inputs"], inputs_BL)
        batch = {
            "tokens": inputs_BL.astype(np.int32),
            "targets": targets_BL,
            "segment_ids": segments_BL,
            "positions": packed["positions"],
            "loss_weights": (segments_BL > 0).astype(np.float32),
        }
        return batch

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        shape, axes = (batch_size, length), ("batch", "length")
        names = ("tokens", "targets", "segment_ids", "positions")
        return {
            **{name: ArraySpec(shape, "int32", axes) for name in names},
            "loss_weights": ArraySpec(shape, "float32", axes),
        }

    def forward(self, model, batch: dict[str, jax.Array]) -> Output:
        return model(batch["tokens"], batch["segment_ids"], batch["positions"], causal=True)

    def loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        weights_BL = batch["loss_weights"]
        nll_BL, log_z_BL = cross_entropy(logits, batch["targets"])
        weight = jnp.sum(weights_BL)
        terms = {"cross_entropy": Term(weighted_sum(nll_BL, weights_BL), weight)}
        if self.z_loss > 0:
            terms["z_loss"] = Term(weighted_sum(jnp.square(log_z_BL), weights_BL), weight, self.z_loss)
        hits_BL = (jnp.argmax(logits, -1) == batch["targets"]).astype(jnp.float32)
        return terms, {"accuracy": (weighted_sum(hits_BL, weights_BL), weight)}

"""Multi-token prediction (DeepSeek-V3 2024, section 2.2): small modules predict the tokens after the next one as well.

Module d joins what the model (or module d - 1) made of a token with the embedding of the d-th token after it, runs one
more layer, and predicts the token after that; embedding and head are the model's. The model proper stays a causal one:
it generates without the modules. Axes: B batch · L length.
"""

import dataclasses

import gin
import jax
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.objective import Metrics, ModelNeeds, Output, Terms
from pretrain.objectives.causal import Causal, token_loss


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MultiToken(Causal):
    """Next-token prediction, and `ahead` tokens more.

    Attributes:
        ahead: further tokens, each with a module of its own.
        ahead_weight: coefficient of their losses, shared evenly (DeepSeek-V3: 0.3, later 0.1).
    """

    ahead: int = 1
    ahead_weight: float = 0.3

    passes = "multi_token"

    def __post_init__(self):
        super().__post_init__()
        check(self.ahead >= 1, f"MultiToken.ahead must be >= 1, got {self.ahead}")
        check(self.ahead_weight > 0, f"MultiToken.ahead_weight must be > 0, got {self.ahead_weight}")

    @property
    def model_needs(self) -> ModelNeeds:
        return ModelNeeds(architectures=("decoder",), ahead=self.ahead)

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """As `Causal.finish`, with the targets of each depth, and weights 0 where the document ends before them."""
        batch = super().finish(packed, rng)
        for depth in range(1, self.ahead + 1):
            later = {name: np.zeros_like(batch[name]) for name in ("targets", "segment_ids", "loss_weights")}
            for name, array_BL in later.items():
                array_BL[:, :-depth] = batch[name][:, depth:]
            inside_BL = (later["segment_ids"] == batch["segment_ids"]) & (batch["segment_ids"] > 0)
            batch[f"ahead{depth}_targets"] = np.where(inside_BL, later["targets"], 0)
            batch[f"ahead{depth}_weights"] = np.where(inside_BL, later["loss_weights"], np.float32(0))
        return batch

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        spec = super().batch_spec(batch_size, length)
        for depth in range(1, self.ahead + 1):
            spec |= {f"ahead{depth}_targets": spec["targets"], f"ahead{depth}_weights": spec["loss_weights"]}
        return spec

    def forward(self, model, batch: dict[str, jax.Array]) -> Output:
        """Hidden states of the model and of each depth, "0", "1", ..."""
        output = super().forward(model, batch)
        hidden = {"0": output.hidden}
        for depth in range(self.ahead):
            next_BL = batch["targets" if depth == 0 else f"ahead{depth}_targets"]
            rows = next_BL, batch["segment_ids"], batch["positions"]
            hidden[str(depth + 1)] = model.look_ahead(hidden[str(depth)], rows, depth)
        return output._replace(hidden=hidden)

    def head(self, model, hidden: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {depth: model.head(states_BLD) for depth, states_BLD in hidden.items()}

    def loss(self, logits: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        terms, metrics = super().loss(logits["0"], batch)
        for depth in range(1, self.ahead + 1):
            there = {"targets": batch[f"ahead{depth}_targets"], "loss_weights": batch[f"ahead{depth}_weights"]}
            found, counts = token_loss(logits[str(depth)], there, self.z_loss, self.label_smoothing)
            for name, term in found.items():
                coefficient = term.coefficient * self.ahead_weight / self.ahead
                terms[f"ahead{depth}_{name}"] = dataclasses.replace(term, coefficient=coefficient)
            metrics |= {f"ahead{depth}_{name}": count for name, count in counts.items()}
        return terms, metrics

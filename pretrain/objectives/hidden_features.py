"""Latent feature prediction: what a slowly following copy of the encoder makes of hidden patches is said from others.

I-JEPA: Assran et al. 2023; of films: V-JEPA, Bardes et al. 2024. No pixel is predicted, so what cannot be foreseen of
them need not be. As in V-JEPA all hidden patches are asked for at once, where I-JEPA asks for four blocks one by one;
and the copy's momentum stays as it is, as in V-JEPA 2 (Assran et al. 2025).

Axes: B batch · M hidden patches · D embed.
"""

import dataclasses
from typing import Any

import gin
import jax
import jax.numpy as jnp
import optax

from pretrain.core.errors import check
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms
from pretrain.objectives.examples import count_unusable
from pretrain.objectives.hidden_patches import HiddenPatches
from pretrain.objectives.losses import weighted_sum


@gin.configurable
@dataclasses.dataclass(frozen=True)
class HiddenFeatures(HiddenPatches):
    """Says the features of hidden patches; the loss is their smooth L1 error (a square within 1, linear beyond).

    Attributes:
        pictures, ratio, blocks, at_all_times: as in `HiddenPatches`.
        momentum: share of itself that the copy of the encoder keeps at each step.
    """

    blocks: bool = True
    momentum: float = 0.996

    def __post_init__(self):
        super().__post_init__()
        check(0 < self.momentum < 1, f"HiddenFeatures.momentum must be above 0 and below 1, got {self.momentum}")

    @property
    def model_needs(self) -> ModelNeeds:
        return ModelNeeds(("vision",), chunkable=False, backbone="joint_embedding", momentum=self.momentum)

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        said_BMD, wanted_BMD = model(self.shown(batch), batch["seen"], batch["hidden"])
        return Output({"said": said_BMD, "wanted": wanted_BMD})

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """As a metric, `spread`: how much features differ within a picture, from 0 (all alike: a collapse) to 1."""
        weights_B, wanted_BMD = batch["loss_weights"], outputs["wanted"]
        weight = jnp.sum(weights_B)
        off_B = jnp.mean(optax.huber_loss(outputs["said"], wanted_BMD), axis=(1, 2))
        spread_B = jnp.mean(jnp.std(wanted_BMD, axis=1), axis=-1)
        metrics = {"spread": (weighted_sum(spread_B, weights_B), weight)}
        return {"features": Term(weighted_sum(off_B, weights_B), weight)}, metrics | count_unusable(batch)

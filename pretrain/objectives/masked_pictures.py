"""Masked autoencoding: most patches of a picture or film are hidden, and their pixels are said from the others.

MAE: He et al. 2021; of films: VideoMAE, Tong et al. 2022.

Axes: B batch · L patches · M hidden patches · P values of a patch.
"""

import dataclasses
from typing import Any

import gin
import jax
import jax.numpy as jnp

from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms
from pretrain.core.video import chosen, cut
from pretrain.objectives.examples import count_unusable
from pretrain.objectives.films import Films
from pretrain.objectives.hidden_patches import HiddenPatches
from pretrain.objectives.losses import weighted_sum


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MaskedPictures(HiddenPatches):
    """Says the pixels of hidden patches; the loss is their mean squared error, from -1 to 1 or as `normalized` has it.

    Attributes:
        pictures, ratio, blocks, at_all_times: as in `HiddenPatches`.
        normalized: each patch by its own mean and deviation, which asks for its structure rather than its brightness.
    """

    normalized: bool = True

    model_needs = ModelNeeds(architectures=("vision",), chunkable=False, backbone="masked_autoencoder")

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        return Output(model(self.shown(batch), batch["seen"], batch["hidden"]))

    def loss(self, outputs: jax.Array, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """`outputs`: what is said of the hidden patches, [B, M, P]."""
        weights_B = batch["loss_weights"]
        off_B = jnp.mean(jnp.square(outputs - self.wanted(batch)), axis=(1, 2))
        return {"pixels": Term(weighted_sum(off_B, weights_B), jnp.sum(weights_B))}, count_unusable(batch)

    def wanted(self, batch: dict[str, jax.Array]) -> jax.Array:
        """What should be said of the hidden patches, float32 [B, M, P]."""
        p = self.pictures
        values_BLP = cut(batch[next(iter(p.spec()))], p.patch_size, p.tube if isinstance(p, Films) else 1)
        values_BMP = chosen(values_BLP, batch["hidden"]).astype(jnp.float32) / 127.5 - 1
        if not self.normalized:
            return values_BMP
        away_BMP = values_BMP - jnp.mean(values_BMP, axis=-1, keepdims=True)
        return away_BMP * jax.lax.rsqrt(jnp.var(values_BMP, axis=-1, ddof=1, keepdims=True) + 1e-6)

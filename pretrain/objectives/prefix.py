"""Prefix language modelling (Raffel et al. 2020, section 3.2.3): all tokens look at a prefix, the rest is predicted.

Axes: B batch · L length · P pieces.
"""

import dataclasses

import gin
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.objectives.causal import Causal, decoder_spec
from pretrain.objectives.pieces import take_apart


@gin.configurable
@dataclasses.dataclass(frozen=True)
class PrefixLM(Causal):
    """Cuts each document at random; what stands before the cut is read in both directions and has no loss."""

    random_finish = True

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """As `Causal.finish`, with a prefix of 1 to all inputs of each piece, all as likely."""
        batch = super().finish(packed, rng)
        positions_BL, real_BL = batch["positions"], batch["segment_ids"] > 0
        lengths_P = take_apart(batch["tokens"], batch["segment_ids"]).lengths_P
        prefix_P = 1 + np.floor(rng.random(len(lengths_P)) * lengths_P)
        prefix_BL = np.zeros(real_BL.shape, np.int32)
        prefix_BL[real_BL] = np.repeat(prefix_P, lengths_P)
        batch["prefix_mask"] = real_BL & (positions_BL < prefix_BL)
        # The last token of the prefix predicts one that the prefix does not show.
        batch["loss_weights"] *= positions_BL >= prefix_BL - 1
        return batch

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        return decoder_spec(batch_size, length, prefix=True)

"""Masked contrastive learning on sound: which code belongs to a hidden frame (wav2vec 2.0, Baevski et al. 2020).

Spans of frames are hidden; for each hidden frame, its own code must be found among those of other hidden frames of the
same recording. A second term wants all entries of the codebooks in use. In the paper it is of the whole batch; here of
each recording, as a mixture's balance is of each row, so that accumulation and meshes change nothing.

Axes: B batch · T samples · L frames · K codes to choose from beside the own one · J joint space · G codebooks ·
V entries.
"""

import dataclasses
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms
from pretrain.core.sound import Waves, decode, padded
from pretrain.objectives.examples import Examples, count_unusable
from pretrain.objectives.losses import weighted_sum

NEVER = -1e30


@gin.configurable
@dataclasses.dataclass(frozen=True)
class MaskedSound(Examples):
    """Finds the codes of hidden frames. Records hold `sound`; of a long one each epoch hears another part.

    Attributes:
        waves: what a model makes of samples.
        start_rate, span: so many of the frames begin a hidden span of so many frames; spans may overlap.
        distractors: codes of other hidden frames that a frame's own is to be told from.
        temperature: what cosines are divided by.
        diversity: coefficient of the term that wants all entries in use.
        penalty: coefficient of the mean square of what the convolutions give.
    """

    waves: Waves = dataclasses.field(default_factory=Waves)
    start_rate: float = 0.065
    span: int = 10
    distractors: int = 100
    temperature: float = 0.1
    diversity: float = 0.1
    penalty: float = 10.0

    features = ("sound",)
    random_finish = True

    def __post_init__(self):
        check_fields(self)
        check(0 < self.start_rate < 1, f"MaskedSound.start_rate must be above 0 and below 1, got {self.start_rate}")
        for name in ("span", "distractors", "temperature"):
            check(getattr(self, name) > 0, f"MaskedSound.{name} must be > 0, got {getattr(self, name)}")
        for name in ("diversity", "penalty"):
            check(getattr(self, name) >= 0, f"MaskedSound.{name} must be >= 0, got {getattr(self, name)}")

    @property
    def model_needs(self) -> ModelNeeds:
        return ModelNeeds(("encoder",), chunkable=False, backbone="wave", shape=self.waves)

    def example(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A part of a recording, which frames are hidden, and what each of these is to be told from.

        Raises:
            ValueError: a broken recording, or one of less than 3 frames.
        """
        samples, w = decode(record["sound"]), self.waves
        start = rng.integers(max(len(samples) - w.samples, 0) + 1)
        samples = samples[start : start + w.samples]
        frames = w.frames(len(samples))
        if frames < 3:
            raise ValueError(f"{len(samples)} samples make {frames} frames; at least 3 are needed")
        hidden_L = np.zeros(w.frames(w.samples), bool)
        hidden_L[:frames] = self.hide(frames, rng)
        return {
            "samples": padded(samples, w.samples), "lengths": np.int32(len(samples)),
            "hidden": hidden_L, "distractors": self.others(hidden_L, rng),
        }  # fmt: skip

    def hide(self, frames: int, rng: np.random.Generator) -> np.ndarray:
        """Which frames are hidden: 2 or more, and not all. bool [frames]."""
        span = min(self.span, max(2, frames // 2))
        starts = min(max(1 + (span == 1), int(self.start_rate * frames + rng.random())), frames - span)
        hidden = np.zeros(frames, bool)
        hidden[(rng.choice(frames - span + 1, starts, replace=False)[:, None] + np.arange(span)).reshape(-1)] = True
        if hidden.all():
            hidden[rng.integers(frames)] = False
        return hidden

    def others(self, hidden_L: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """For each hidden frame the places of others, drawn with replacement: int32 [L, K]; 0 for the rest."""
        places_M = np.flatnonzero(hidden_L)
        draws_MK = rng.integers(len(places_M) - 1, size=(len(places_M), self.distractors))
        draws_MK += draws_MK >= np.arange(len(places_M))[:, None]  # not itself
        found_LK = np.zeros((len(hidden_L), self.distractors), np.int32)
        found_LK[places_M] = places_M[draws_MK]
        return found_LK

    def example_spec(self) -> dict[str, ArraySpec]:
        length = self.waves.frames(self.waves.samples)
        return {
            "samples": ArraySpec((self.waves.samples,), "int16", (None,)),
            "lengths": ArraySpec((), "int32", ()),
            "hidden": ArraySpec((length,), "bool", (None,)),
            "distractors": ArraySpec((length, self.distractors), "int32", (None, None)),
        }

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """As `Examples.finish`; draws a number for each row's noise."""
        batch = super().finish(packed, rng)
        return batch | {"noise": rng.integers(0, 1 << 31, len(batch["lengths"]), np.int32, endpoint=False)}

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        """`length` has no meaning here."""
        return super().batch_spec(batch_size, length) | {"noise": ArraySpec((batch_size,), "int32", ("batch",))}

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        hidden_BL = batch["hidden"]
        valid_BL = jnp.arange(hidden_BL.shape[1]) < self.waves.frames(batch["lengths"])[:, None]
        return Output(model(batch["samples"], batch["lengths"], valid_BL, hidden_BL, batch["noise"]))

    def head(self, model: Any, hidden: Any, batch: dict[str, jax.Array]) -> Any:
        del model, batch
        return hidden

    def loss(self, outputs: Any, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """`outputs`: a `models.wave.Heard`."""
        weights_B = batch["loss_weights"]
        weights_BL = weights_B[:, None] * batch["hidden"]
        logits_BLK = self.logits(outputs, batch["distractors"])
        loss_BL = jax.nn.logsumexp(logits_BLK, axis=-1) - logits_BLK[..., 0]
        found_BL = logits_BLK[..., 0] > jnp.max(logits_BLK[..., 1:], axis=-1)
        rows, frames = jnp.sum(weights_B), jnp.sum(weights_BL)
        unused_B, entries_B = self.unused(outputs.chances_BLGV, weights_BL)
        terms = {
            "contrastive": Term(weighted_sum(loss_BL, weights_BL), frames),
            "diversity": Term(weighted_sum(unused_B, weights_B), rows, self.diversity),
            "penalty": Term(weighted_sum(outputs.squares_B, weights_B), rows, self.penalty),
        }
        metrics = {
            "accuracy": (weighted_sum(found_BL * 1.0, weights_BL), frames),
            "entries": (weighted_sum(entries_B, weights_B), rows),
        }
        return terms, metrics | count_unusable(batch)

    def logits(self, heard: Any, distractors_BLK: jax.Array) -> jax.Array:
        """Of a frame's own code, and then of the others, float32 [B, L, 1 + K]; none of others that are alike."""
        nearness_BLM = jnp.einsum("blj,bmj->blm", heard.said_BLJ, heard.codes_BLJ) / self.temperature
        alike_BLM = jnp.all(heard.chosen_BLG[:, :, None] == heard.chosen_BLG[:, None], axis=-1)
        own_BL1 = jnp.diagonal(nearness_BLM, axis1=1, axis2=2)[..., None]
        others_BLM = jnp.where(alike_BLM, NEVER, nearness_BLM)
        return jnp.concatenate(
            [own_BL1, jnp.take_along_axis(others_BLM, distractors_BLK, axis=2, mode="clip")], axis=-1
        )

    def unused(self, chances_BLGV: jax.Array, weights_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Share of the entries that a recording's hidden frames do not use, and number of those they do, [B] each.

        What is used is counted as the exponential of the entropy of the mean chances.
        """
        weights_BL = weights_BL / jnp.maximum(jnp.sum(weights_BL, axis=1, keepdims=True), 1)
        mean_BGV = jnp.einsum("blgv,bl->bgv", chances_BLGV, weights_BL)
        used_BG = jnp.exp(-jnp.sum(mean_BGV * jnp.log(mean_BGV + 1e-7), axis=-1))
        return jnp.mean(1 - used_BG / chances_BLGV.shape[-1], axis=-1), jnp.sum(used_BG, axis=-1)

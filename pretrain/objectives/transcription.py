"""Transcription: what is said in a recording, word by word, from pairs (Whisper, Radford et al. 2022).

The decoder begins with BOS and ends with EOS. Whisper's tokens for language, task and times are not there.

Axes: B batch · T samples · L text.
"""

import dataclasses
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.objective import Metrics, ModelNeeds, Output, Terms
from pretrain.core.sound import SoundShape, decode, padded
from pretrain.objectives.causal import check_loss_fields, token_loss
from pretrain.objectives.examples import Examples, count_unusable, padded_text, text_spec


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Transcription(Examples):
    """Writes down what a recording says. Records hold `sound`, and the transcript as their text.

    Attributes:
        sound: length of recordings, and bands of the spectrogram. A longer recording is left out, and counted.
        text_length: tokens of a transcript, its EOS included. A longer one is left out, and counted.
        z_loss, label_smoothing: as in `Causal`.
    """

    sound: SoundShape = dataclasses.field(default_factory=SoundShape)
    text_length: int = 448
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    features = ("sound", "tokens")

    def __post_init__(self):
        check_fields(self)
        check_loss_fields(self)
        check(self.text_length >= 2, f"Transcription.text_length must be 2 or more, got {self.text_length}")

    @property
    def model_needs(self) -> ModelNeeds:
        return ModelNeeds(("encoder_decoder",), chunkable=False, backbone="speech", shape=self.sound)

    @property
    def encoded_length(self) -> int:
        """Hidden states of the encoder."""
        return self.sound.frames // 2

    def example(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A recording with silence behind it, and its transcript: what is read and what is written.

        Raises:
            ValueError: a broken, empty or too long recording, no transcript, or one that is too long.
        """
        if len(record["tokens"]) > self.text_length:
            raise ValueError(f"{len(record['tokens'])} tokens of text, at most {self.text_length}")
        text = padded_text(record["tokens"], self.text_length)
        before = np.concatenate([[self.vocabulary.bos_id], text["tokens"][:-1]])
        return {
            "samples": padded(decode(record["sound"]), self.sound.samples),
            "decoder_inputs": before * text["segment_ids"],
            "targets": text["tokens"],
            "segment_ids": text["segment_ids"],
        }

    def example_spec(self) -> dict[str, ArraySpec]:
        text = text_spec(self.text_length)
        return {
            "samples": ArraySpec((self.sound.samples,), "int16", (None,)),
            "decoder_inputs": text["tokens"],
            "targets": text["tokens"],
            "segment_ids": text["segment_ids"],
        }

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        tokens_BL, segments_BL = batch["decoder_inputs"], batch["segment_ids"]
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
        return model.transcribe(batch["samples"], (tokens_BL, segments_BL, positions_BL))

    def loss(self, logits: jax.Array, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        weights_BL = batch["loss_weights"][:, None] * (batch["segment_ids"] > 0)
        said = {"targets": batch["targets"], "loss_weights": weights_BL}
        terms, metrics = token_loss(logits, said, self.z_loss, self.label_smoothing)
        return terms, metrics | count_unusable(batch)

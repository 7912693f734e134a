"""Diffusion and flow matching: a model learns to say what is noise in a noisy picture (Ho et al. 2020; Lipman et al.
2023).

Time and noise of a row follow from a number that the row brings along, so that they are the same on any mesh and in
microbatches. A label is left out now and then, so that one model knows the pictures of a class and pictures as such,
which classifier-free guidance needs (Ho and Salimans 2022). `Optimizer.average` keeps the averaged weights that samples
are drawn with. Short films are pictures of tubes (Ho et al. 2022, "Video Diffusion Models"), which may go on from given
frames. With `PictureShape.levels` codes are noisy in place of pixels (latent diffusion, Rombach et al. 2022), those of
a small tokenizer of patches that is trained along.

Axes: B batch · N patches · P pixels of a patch · Z values of a patch as the model sees it: pixels, or digits of a code.
"""

import dataclasses
from typing import Any, Literal

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.diffusion import Path, PictureShape, Prediction, picture_and_noise, signal_and_noise, wanted
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.images import decode, resize
from pretrain.core.objective import Metrics, ModelNeeds, Output, Term, Terms
from pretrain.core.video import cut
from pretrain.objectives.examples import Examples, count_unusable
from pretrain.objectives.films import Films
from pretrain.objectives.losses import weighted_sum


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Diffusion(Examples):
    """Removes noise from pictures or films.

    Attributes:
        picture: sizes, and number of classes.
        path: from picture to noise.
        predict: what the model says.
        drop_label: share of rows whose label is left out.
        times: how often which time is drawn: "even", or "logit_normal" (Esser et al. 2024), which has more of the
            middle.
        reconstruction: coefficient of the tokenizer's own term, where codes are drawn.
    """

    picture: PictureShape = dataclasses.field(default_factory=PictureShape)
    path: Path = "straight"
    predict: Prediction = "flow"
    drop_label: float = 0.1
    times: Literal["even", "logit_normal"] = "even"
    reconstruction: float = 1.0

    random_finish = True

    def __post_init__(self):
        check_fields(self)
        check(self.reconstruction > 0, f"Diffusion.reconstruction must be > 0, got {self.reconstruction}")
        check(0 <= self.drop_label < 1, f"Diffusion.drop_label must be from 0 to below 1, got {self.drop_label}")

    @property
    def features(self) -> tuple[str, ...]:
        seen = "image" if self.picture.frames == 1 else Films.feature
        return (seen, "label") if self.picture.classes > 1 else (seen,)

    @property
    def model_needs(self) -> ModelNeeds:
        return ModelNeeds(("encoder",), chunkable=False, backbone="diffusion", shape=self.picture)

    def example_spec(self) -> dict[str, ArraySpec]:
        p, label = self.picture, {"labels": ArraySpec((), "int32", ())}
        if p.frames > 1:
            return self._films().spec() | label
        return {"images": ArraySpec((p.height, p.width, p.channels), "uint8", (None, None, None))} | label

    def example(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A picture, encoded or as pixels, resized to the model's size, or a window of a film; and its class.

        Raises:
            ValueError: a broken picture or film, a film of too few frames, or a class that is missing or not one of
                them.
        """
        p, label = self.picture, record["label"] if self.picture.classes > 1 else [0]
        if len(label) != 1 or not 0 <= label[0] < p.classes:
            raise ValueError(f"no class from 0 to {p.classes - 1}")
        if p.frames > 1:
            return self._films().view(record["frames"], rng) | {"labels": label[0]}
        image = record["image"]
        image = decode(image, p.channels) if image.ndim == 1 else image.reshape(*image.shape[:2], -1)
        if 0 in image.shape or image.shape[-1] != p.channels:
            raise ValueError(f"a picture of {image.shape}, not of {p.channels} channels")
        return {"images": resize(image, p.height, p.width), "labels": label[0]}

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """As `Examples.finish`; leaves some labels out, and draws a number for each row."""
        batch = super().finish(packed, rng)
        rows = len(batch["labels"])
        labels = np.where(rng.random(rows) < self.drop_label, self.picture.classes, batch["labels"])
        noise = rng.integers(0, 1 << 31, rows, np.int32, endpoint=False)
        return batch | {"labels": labels.astype(np.int32), "noise": noise}

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        """`length` has no meaning here."""
        return super().batch_spec(batch_size, length) | {"noise": ArraySpec((batch_size,), "int32", ("batch",))}

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        found, picture_BNZ = {}, self.patches(batch)
        if model.codes is not None:
            digits_BNZ = model.codes.digits(picture_BNZ)
            found["rebuilt"] = model.codes.patches(digits_BNZ)
            picture_BNZ = jax.lax.stop_gradient(model.codes.centred(digits_BNZ))
        times_B, noise_BNZ = self.draw(batch["noise"], picture_BNZ.shape[1:])
        a_B11, b_B11 = (each[:, None, None] for each in signal_and_noise(self.path, times_B))
        given, seen_BNZ = self.picture.given_patches, a_B11 * picture_BNZ + b_B11 * noise_BNZ
        seen_BNZ = seen_BNZ.at[:, :given].set(picture_BNZ[:, :given])
        found |= {"seen": seen_BNZ, "picture": picture_BNZ}
        return Output({"hidden": model(seen_BNZ, times_B, batch["labels"]), **found})

    def head(self, model: Any, hidden: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return hidden | {"said": model.said(hidden["hidden"])}

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """The mean square of what was said wrongly; as a metric, of the picture or the codes that it implies."""
        picture_BNZ, weights_B = outputs["picture"], batch["loss_weights"]
        drawn = slice(self.picture.given_patches, None)
        times_B, noise_BNZ = self.draw(batch["noise"], picture_BNZ.shape[1:])
        a, b = (each[:, None, None] for each in signal_and_noise(self.path, times_B))
        weight = jnp.sum(weights_B)

        def mean_square(wrong_BNX: jax.Array) -> jax.Array:
            return weighted_sum(jnp.mean(jnp.square(wrong_BNX), (1, 2)), weights_B)

        wrong_BNZ = outputs["said"] - wanted(self.predict, picture_BNZ, noise_BNZ, a, b)
        terms = {"denoising": Term(mean_square(wrong_BNZ[:, drawn]), weight)}
        if "rebuilt" in outputs:
            error = mean_square(outputs["rebuilt"] - self.patches(batch))
            terms["reconstruction"] = Term(error, weight, self.reconstruction)
        implied_BNZ, _ = picture_and_noise(self.predict, outputs["said"], outputs["seen"], a, b)
        off_BNZ = jnp.clip(implied_BNZ, -1, 1) - picture_BNZ
        return terms, {"picture_error": (mean_square(off_BNZ[:, drawn]), weight)} | count_unusable(batch)

    def patches(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Pixels of a batch from -1 to 1, float32 [batch, patches, pixels]."""
        pixels = batch["images" if self.picture.frames == 1 else "frames"]
        return cut(pixels, self.picture.patch, self.picture.tube).astype(jnp.float32) / 127.5 - 1

    def draw(self, numbers_B: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Times float32 [batch] and noise float32 [batch, *shape], of each row's number."""

        def of_row(number: jax.Array) -> tuple[jax.Array, jax.Array]:
            time_key, noise_key = jax.random.split(jax.random.key(number))
            time = jax.random.uniform(time_key)
            if self.times == "logit_normal":
                time = jax.nn.sigmoid(jax.random.normal(time_key))
            return time, jax.random.normal(noise_key, shape)

        return jax.vmap(of_row)(numbers_B)

    def _films(self) -> Films:
        """How windows of films are read."""
        p = self.picture
        return Films(p.frames, 1, p.height, p.width, p.channels, p.patch, p.tube, flip=False)

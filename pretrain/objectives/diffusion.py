"""Diffusion and flow matching: a model learns to say what is noise in a noisy picture (Ho et al. 2020; Lipman et al.
2023).

Time and noise of a row follow from a number that the row brings along, so that they are the same on any mesh and in
microbatches. A label is left out now and then, so that one model knows the pictures of a class and pictures as such,
which classifier-free guidance needs (Ho and Salimans 2022). `Optimizer.average` keeps the averaged weights that samples
are drawn with.

Axes: B batch · N patches · P values of a patch.
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
from pretrain.core.video import to_patches
from pretrain.objectives.examples import Examples, count_unusable
from pretrain.objectives.losses import weighted_sum


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Diffusion(Examples):
    """Removes noise from pictures.

    Attributes:
        picture: sizes, and number of classes.
        path: from picture to noise.
        predict: what the model says.
        drop_label: share of rows whose label is left out.
        times: how often which time is drawn: "even", or "logit_normal" (Esser et al. 2024), which has more of the
            middle.
    """

    picture: PictureShape = dataclasses.field(default_factory=PictureShape)
    path: Path = "straight"
    predict: Prediction = "flow"
    drop_label: float = 0.1
    times: Literal["even", "logit_normal"] = "even"

    def __post_init__(self):
        check_fields(self)
        check(0 <= self.drop_label < 1, f"Diffusion.drop_label must be from 0 to below 1, got {self.drop_label}")

    features = ("image", "label")
    random_finish = True

    @property
    def model_needs(self) -> ModelNeeds:
        return ModelNeeds(("encoder",), chunkable=False, backbone="diffusion", shape=self.picture)

    def example_spec(self) -> dict[str, ArraySpec]:
        p = self.picture
        image = ArraySpec((p.height, p.width, p.channels), "uint8", (None, None, None))
        return {"images": image, "labels": ArraySpec((), "int32", ())}

    def example(self, record: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A picture, encoded or as pixels, resized to the model's size, and its class.

        Raises:
            ValueError: a broken picture, or a class that is missing or not one of them.
        """
        p, image, label = self.picture, record["image"], record["label"]
        if len(label) != 1 or not 0 <= label[0] < p.classes:
            raise ValueError(f"no class from 0 to {p.classes - 1}")
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
        pictures_BNP = to_patches(batch["images"], self.picture.patch)
        times_B, noise_BNP = self.draw(batch["noise"], pictures_BNP.shape[1:])
        a_B11, b_B11 = (each[:, None, None] for each in signal_and_noise(self.path, times_B))
        seen_BNP = a_B11 * pictures_BNP + b_B11 * noise_BNP
        return Output({"hidden": model(seen_BNP, times_B, batch["labels"]), "seen": seen_BNP})

    def head(self, model: Any, hidden: dict[str, jax.Array], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {"said": model.said(hidden["hidden"]), "seen": hidden["seen"]}

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """The mean square of what was said wrongly; as a metric, of the picture that it implies."""
        pictures_BNP, weights_B = to_patches(batch["images"], self.picture.patch), batch["loss_weights"]
        times_B, noise_BNP = self.draw(batch["noise"], pictures_BNP.shape[1:])
        a, b = (each[:, None, None] for each in signal_and_noise(self.path, times_B))
        wrong_BNP = outputs["said"] - wanted(self.predict, pictures_BNP, noise_BNP, a, b)
        weight = jnp.sum(weights_B)
        term = Term(weighted_sum(jnp.mean(jnp.square(wrong_BNP), (1, 2)), weights_B), weight)
        picture_BNP, _ = picture_and_noise(self.predict, outputs["said"], outputs["seen"], a, b)
        off_B = jnp.mean(jnp.square(jnp.clip(picture_BNP, -1, 1) - pictures_BNP), (1, 2))
        metrics = {"picture_error": (weighted_sum(off_B, weights_B), weight)}
        return {"denoising": term}, metrics | count_unusable(batch)

    def draw(self, numbers_B: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
        """Times float32 [batch] and noise float32 [batch, *shape], of each row's number."""

        def of_row(number: jax.Array) -> tuple[jax.Array, jax.Array]:
            time_key, noise_key = jax.random.split(jax.random.key(number))
            time = jax.random.uniform(time_key)
            if self.times == "logit_normal":
                time = jax.nn.sigmoid(jax.random.normal(time_key))
            return time, jax.random.normal(noise_key, shape)

        return jax.vmap(of_row)(numbers_B)

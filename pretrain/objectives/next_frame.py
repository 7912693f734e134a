"""Predicts the next frame of a video or a robot's recording from the past and the action taken, and the action itself.

A world model (Ha and Schmidhuber 2018; Hafner et al. 2020) and a policy by behaviour cloning, in one. Frames are
predicted as the change of their pixels, or, with `VideoShape.levels`, as codes of a tokenizer that is trained along
(after Hu et al. 2023, "GAIA-1"). Actions that were taken and actions that should be are two features, so that a robot
may be recorded under noise and still teach what was right (DART, Laskey et al. 2017). With `VideoShape.instruction` a
text says what is to be done, and the policy follows it (RT-1, Brohan et al. 2022).

Axes: B batch · T time · N patches · P values of a patch · S state · A action · Z digits · K codes.
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
from pretrain.core.video import VideoShape, code_of, to_patches
from pretrain.objectives.base import Objective
from pretrain.objectives.losses import cross_entropy, weighted_sum


@gin.configurable
@dataclasses.dataclass(frozen=True)
class NextFrame(Objective):
    """Next frame, next state and next action.

    Attributes:
        video: sizes of the recordings.
        pixels, state, action, codes, reconstruction: coefficients of the terms; a state and an action that the
            recordings do not have are left out. Pixels count from -1 to 1, so their mean squared error is small beside
            the others'.
        imagined: at how many steps, the last of a row that another one follows, the next frame is said and learned; 0
            for all. The policy learns from all. Most of the work is in the decoder.
    """

    video: VideoShape = dataclasses.field(default_factory=VideoShape)
    pixels: float = 1.0
    state: float = 1.0
    action: float = 1.0
    codes: float = 1.0
    reconstruction: float = 1.0
    imagined: int = 0

    random_finish = False

    def __post_init__(self):
        check_fields(self)
        for name in ("pixels", "state", "action", "codes", "reconstruction"):
            check(getattr(self, name) > 0, f"NextFrame.{name} must be > 0, got {getattr(self, name)}")
        check(self.imagined >= 0, f"NextFrame.imagined must be >= 0, got {self.imagined}")

    @property
    def model_needs(self) -> ModelNeeds:
        return ModelNeeds(("encoder_decoder",), chunkable=False, backbone="world", shape=self.video)

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(name for name in self.batch_spec(1, 2) if name not in ("segment_ids", "loss_weights"))

    def packed_length(self, length: int) -> dict[str, int]:
        return dict.fromkeys(self.features, length)

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Adds `loss_weights`: 1 at each step that is followed by another one of its episode.

        Args:
            packed: the features, [rows, steps, ...], and `frames_segment_ids`, int32 [rows, steps].
            rng: not used.

        Raises:
            UserError: instructions of another length than the model's.
        """
        del rng
        if self.video.instruction:
            stored, wanted = packed["instructions"].shape[-1], self.video.instruction
            check(
                stored == wanted,
                f"the cache has instructions of {stored} bytes, and VideoShape.instruction is {wanted}: "
                f"set it to {stored}",
            )
        segment_ids = packed["frames_segment_ids"]
        weights = np.zeros(segment_ids.shape, np.float32)
        weights[:, :-1] = (segment_ids[:, :-1] == segment_ids[:, 1:]) & (segment_ids[:, :-1] > 0)
        arrays = {name: packed[name] for name in self.features}
        return arrays | {"segment_ids": segment_ids, "loss_weights": weights}

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        """`length` is the number of time steps."""
        v, steps = self.video, ((batch_size, length), ("batch", "length"))

        def spec(dtype: str, *sizes: int) -> ArraySpec:
            return ArraySpec((*steps[0], *sizes), dtype, (*steps[1], *(None for _ in sizes)))

        specs = {"frames": spec("uint8", v.height, v.width, v.channels)}
        if v.state_dim:
            specs["states"] = spec("float32", v.state_dim)
        if v.action_dim:
            specs |= {"actions": spec("float32", v.action_dim), "action_targets": spec("float32", v.action_dim)}
            specs["action_weights"] = spec("float32")
        if v.instruction:
            specs["instructions"] = spec("uint8", v.instruction)
        return specs | {"segment_ids": spec("int32"), "loss_weights": spec("float32")}

    def forward(self, model: Any, batch: dict[str, jax.Array]) -> Output:
        seen_BTNZ = patches_BTNP = to_patches(batch["frames"], self.video.patch)
        found = {}
        if model.codes is not None:
            digits_BTNZ = model.codes.digits(patches_BTNP)
            found["digits"], found["rebuilt"] = digits_BTNZ, model.codes.patches(digits_BTNZ)
            seen_BTNZ = jax.lax.stop_gradient(digits_BTNZ)
        states_BTS, actions_BTA = (
            self.video.normalized(batch[name]) if name in batch else None for name in ("states", "actions")
        )
        past = model.encode(seen_BTNZ, states_BTS, batch["segment_ids"], batch.get("instructions"))
        steps = self.steps(past.tokens_BTMD.shape[1])
        actions_BTA = None if actions_BTA is None else actions_BTA[:, steps]
        return Output({"past": past, "future": model.imagine(past.at(steps), actions_BTA), **found})

    def steps(self, time: int) -> slice:
        """The steps of a row of `time` whose next frame is said."""
        return slice(max(time - 1 - self.imagined, 0) if self.imagined else 0, time - 1)

    def head(self, model: Any, hidden: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        found = {"patches": model.next_patches(hidden["future"])}
        if self.video.state_dim:
            found["state"] = hidden["future"].change_BTS
        if self.video.action_dim:
            found["action"] = model.policy(hidden["past"])
        return found | {name: hidden[name] for name in ("digits", "rebuilt") if name in hidden}

    def loss(self, outputs: dict[str, jax.Array], batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """Means of squares over the numbers of a frame, a state or an action; nats a patch of codes."""
        steps = self.steps(batch["loss_weights"].shape[1])
        weights_BT = batch["loss_weights"][:, steps]
        weight = jnp.sum(weights_BT)
        patches_BTNP = to_patches(batch["frames"], self.video.patch)
        change_BTNP = jnp.diff(patches_BTNP, axis=1)[:, steps]
        metrics = {"copy_error": (weighted_sum(mean_square(change_BTNP, 2), weights_BT), weight)}
        if self.video.levels:
            terms, more = self._code_terms(outputs, patches_BTNP, batch)
            metrics |= more
        else:
            error_BT = mean_square(outputs["patches"] - change_BTNP, 2)
            terms = {"pixels": Term(weighted_sum(error_BT, weights_BT), weight, self.pixels)}
        if "state" in outputs:
            wrong_BTS = outputs["state"] - jnp.diff(self.video.normalized(batch["states"]), axis=1)[:, steps]
            terms["state"] = Term(weighted_sum(mean_square(wrong_BTS, 1), weights_BT), weight, self.state)
        if "action" in outputs:
            wrong_BTA = outputs["action"] - self.video.normalized(batch["action_targets"])
            error = weighted_sum(mean_square(wrong_BTA, 1), batch["action_weights"])
            terms["action"] = Term(error, jnp.sum(batch["action_weights"]), self.action)
        return terms, metrics

    def _code_terms(self, outputs, patches_BTNP: jax.Array, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """The next frame's codes, and how well the tokenizer that is trained along gives frames back."""
        _, time, patches, _ = patches_BTNP.shape
        steps = self.steps(time)
        codes_BTN = code_of(jax.lax.stop_gradient(outputs["digits"]), self.video.levels)[:, 1:][:, steps]
        logits_BTNK, weights_BT = outputs["patches"], batch["loss_weights"][:, steps]
        nats_BTN, _ = cross_entropy(logits_BTNK, codes_BTN)
        weight, known_BT = patches * jnp.sum(weights_BT), (batch["segment_ids"] > 0).astype(jnp.float32)
        wrong_BT = mean_square(outputs["rebuilt"] - patches_BTNP, 2)
        right_BT = jnp.sum(jnp.argmax(logits_BTNK, -1) == codes_BTN, -1).astype(jnp.float32)
        terms = {
            "codes": Term(weighted_sum(jnp.sum(nats_BTN, -1), weights_BT), weight, self.codes),
            "reconstruction": Term(weighted_sum(wrong_BT, known_BT), jnp.sum(known_BT), self.reconstruction),
        }
        return terms, {"code_accuracy": (weighted_sum(right_BT, weights_BT), weight)}


def mean_square(x: jax.Array, axes: int) -> jax.Array:
    """Mean of squares over the last `axes` dimensions."""
    return jnp.mean(jnp.square(x), axis=tuple(range(-axes, 0)))

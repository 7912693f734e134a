"""Several objectives in one run, whose shares of the rows may change while it trains (as UL2 and multimodal runs need).

Every row of a batch is of one objective, drawn by the shares of its step. All rows go through one forward pass, so the
objectives must be of one kind: next token, prefix, fill-in-the-middle and denoising in a decoder; denoising in an
encoder-decoder. Axes: B batch · R rows of a part of it · O objectives.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, Self

import gin
import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.batch import ArraySpec, Batch
from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.objective import Metrics, ModelNeeds, Output, Terms, Vocabulary
from pretrain.objectives.base import Objective


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Mixed(Objective):
    """A mixture of objectives.

    Attributes:
        objectives: what is mixed; named in metrics by their classes, with a number where two are of one class.
        shares: of the rows, one number an objective; None for all alike.
        schedule: (step, shares) with rising steps, in place of `shares`: between two of them the shares change evenly.
            Validation batches count from step 0.
        coefficients: on the loss of each objective; None for 1.
        average: "tokens": every target counts alike, so an objective counts by what it has in the batch; "objectives":
            the mean of each objective counts by its coefficient alone.
    """

    objectives: Sequence[Objective] = ()
    shares: Sequence[float] | None = None
    schedule: Sequence[Sequence] | None = None
    coefficients: Sequence[float] | None = None
    average: Literal["tokens", "objectives"] = "tokens"

    def __post_init__(self):
        check_fields(self)
        count = len(self.objectives)
        check(count > 0, "Mixed.objectives is empty: write Mixed.objectives = [@Causal(), @PrefixLM()]")
        check(self.shares is None or self.schedule is None, "Mixed: give shares or a schedule, not both")
        for shares in [self.shares, *(shares for _, shares in self.schedule or ())]:
            right = shares is None or (len(shares) == count and min(shares) >= 0 and sum(shares) > 0)
            check(right, f"Mixed: shares must be {count} numbers of 0 or more, not all 0; got {shares!r}")
        steps = [step for step, _ in self.schedule or ()]
        check(steps == sorted(set(steps)), f"Mixed.schedule: steps must rise, got {steps}")
        check(
            self.coefficients is None or (len(self.coefficients) == count and min(self.coefficients) >= 0),
            f"Mixed.coefficients must be {count} numbers of 0 or more, got {self.coefficients!r}",
        )
        first = self.objectives[0]
        for each in self.objectives:
            name = type(each).__name__
            alike = _pass(each) == _pass(first) and each.model_needs == first.model_needs
            check(alike, f"Mixed: {name} needs another model or forward pass than {type(first).__name__}")
            check(each.features == first.features, f"Mixed: {name} reads {each.features}, not {first.features}")
            kinds = [(kind.prepare, kind.prepared_length) for kind in (type(each), type(first))]
            check(
                kinds[0] == kinds[1],
                f"Mixed: {name} changes records before they are packed otherwise than {type(first).__name__}",
            )

    reads_steps = True  # the loader says which step each row is for

    @property
    def names(self) -> list[str]:
        """Of the objectives, in metrics."""
        kinds = [type(each).__name__ for each in self.objectives]
        return [k if kinds.count(k) == 1 else f"{k}{kinds[: i + 1].count(k)}" for i, k in enumerate(kinds)]

    @property
    def features(self) -> tuple[str, ...]:
        return self.objectives[0].features

    @property
    def model_needs(self) -> ModelNeeds:
        return self.objectives[0].model_needs

    @property
    def sentinels(self) -> int:
        return max(each.sentinels for each in self.objectives)

    @property
    def generates(self) -> bool:
        return any(each.generates for each in self.objectives)

    def bind(self, vocabulary: Vocabulary) -> Self:
        bound = super().bind(vocabulary)
        object.__setattr__(bound, "objectives", tuple(each.bind(vocabulary) for each in self.objectives))
        return bound

    def shares_at(self, steps_R: np.ndarray) -> np.ndarray:
        """Shares of the objectives at each step, float64 [R, O]; each row adds up to 1."""
        constant = np.ones(len(self.objectives)) if self.shares is None else self.shares
        at, shares = zip(*(self.schedule or ((0, constant),)), strict=True)
        table = np.array([np.array(each, float) / sum(each) for each in shares])
        return np.stack([np.interp(steps_R, at, column) for column in table.T], axis=1)

    @property
    def prepare(self):
        """That of all objectives, which change records alike; as an attribute, so that its `identity` is seen."""
        return self.objectives[0].prepare

    def prepared_length(self, lengths: np.ndarray) -> np.ndarray:
        return self.objectives[0].prepared_length(lengths)

    def packed_length(self, length: int) -> int:
        return min(each.packed_length(length) for each in self.objectives)

    def batch_spec(self, batch_size: int, length: int) -> dict[str, ArraySpec]:
        return self._spec(batch_size, self.packed_length(length))

    def _spec(self, rows: int, columns: int) -> dict[str, ArraySpec]:
        """The arrays of all objectives, as long as the longest, and the objective of each row."""
        spec: dict[str, ArraySpec] = {}
        for each in self.objectives:
            for name, new in getattr(each, "packed_spec", each.batch_spec)(rows, columns).items():
                shape = np.maximum(new.shape, spec[name].shape if name in spec else 0)
                spec[name] = dataclasses.replace(new, shape=tuple(shape.tolist()))
        return spec | {"objective": dataclasses.replace(spec["loss_weights"], dtype="int32")}

    def finish(self, packed: Batch, rng: np.random.Generator) -> Batch:
        """Draws the objective of each row, and has it finish its rows.

        Args:
            packed: as the objectives want it, and `steps`, int [rows, ...], each row's step; 0 where left out.
            rng: draws.
        """
        rows, columns = packed["tokens"].shape
        steps_R = packed["steps"].reshape(rows, -1)[:, 0] if "steps" in packed else np.zeros(rows)
        limits_RO = np.cumsum(self.shares_at(steps_R), axis=1)[:, :-1]
        points_R = (rng.permutation(rows) + rng.random()) / max(rows, 1)  # evenly spread: shares hold to within a row
        chosen_R = np.sum(points_R[:, None] >= limits_RO, axis=1).astype(np.int32)
        batch = {name: spec.zeros() for name, spec in self._spec(rows, columns).items()}
        batch["objective"] += chosen_R[:, None]
        for number, each in enumerate(self.objectives):
            mine = np.flatnonzero(chosen_R == number)
            if mine.size:
                for name, array in each.finish({k: v[mine] for k, v in packed.items()}, rng).items():
                    batch[name][np.ix_(mine, *map(np.arange, array.shape[1:]))] = array
        return batch

    def forward(self, model, batch: dict[str, jax.Array]) -> Output:
        return self.objectives[0].forward(model, batch)

    def head(self, model, hidden, batch: dict[str, jax.Array]):
        return self.objectives[0].head(model, hidden, batch)

    def loss(self, outputs, batch: dict[str, jax.Array]) -> tuple[Terms, Metrics]:
        """The terms of each objective over its own rows, `<objective>_<term>`; its mean losses are metrics as well."""
        terms, metrics, weights = {}, {}, {}
        coefficients = self.coefficients or [1.0] * len(self.objectives)
        for number, (name, each) in enumerate(zip(self.names, self.objectives, strict=True)):
            is_mine_BL = batch["objective"] == number
            mine = {key: jnp.where(is_mine_BL, array, 0) for key, array in batch.items() if key.endswith("weights")}
            found, counts = each.loss(outputs, {**batch, **mine})
            metrics |= {f"{name}_{key}": count for key, count in counts.items()}
            for key, term in found.items():
                coefficient = coefficients[number] * term.coefficient
                terms[f"{name}_{key}"] = dataclasses.replace(term, coefficient=coefficient)
                metrics[f"{name}_mean_{key}"] = (term.sum, term.weight)
                weights[key] = weights.get(key, 0.0) + term.weight
        if self.average == "tokens":
            of = {f"{name}_{key}": key for name in self.names for key in weights}
            terms = {name: dataclasses.replace(term, weight=weights[of[name]]) for name, term in terms.items()}
        return terms, metrics


def _pass(objective: Objective) -> str:
    """Which forward pass an objective makes; objectives with the same one can share a batch."""
    return getattr(objective, "passes", type(objective).__name__)

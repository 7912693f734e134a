"""Numbers on the inside of a run: norms by parameter group and layer, activations, attention, Adam's moments, sources.

Sums of squares of gradients, parameters and updates are made in every step, where these arrays are at hand. The rest
comes from a compiled pass of its own over a sampled step's batch and state, before the step is made (nothing of it is
in the steps between): a forward pass whose layers note what they see, and the derivative of the loss by its weights,
which is each token's loss. All of it is fetched with the step's metrics.

Adam's health follows Molybog et al. 2023 ("A theory on Adam instability"): where second moments are tiny beside the
gradient, updates are far from the rate.

Axes: B batch · L length · N layers · T all groups, layer by layer.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.trees import named_leaves
from pretrain.models.functional import FunctionalModel
from pretrain.optim.compact import restored
from pretrain.train.state import TrainState
from pretrain.train.step import NORMS, Batch, StepBuilder, combine, module_totals

TINY = 1e-8  # square roots of second moments below this are lost in Adam's epsilon
DECADES, STEPS_OF_DECADE = (-16, 4), 4  # of histograms


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Statistics:
    """How often to look inside.

    Attributes:
        every: steps between rows of metrics with statistics; 0 for none.
        histograms: steps between histograms of parameters, gradients and moments in TensorBoard, which take a backward
            pass more; 0 for none.
    """

    every: int = 100
    histograms: int = 0

    def __post_init__(self):
        check_fields(self)
        for name in ("every", "histograms"):
            check(getattr(self, name) >= 0, f"Statistics.{name} must be >= 0 steps, got {getattr(self, name)}")

    def due(self, step: int) -> bool:
        """Whether this step is looked at."""
        return bool(self.every) and step % self.every == 0

    def draws(self, step: int) -> bool:
        """Whether histograms are made of this step."""
        return bool(self.histograms) and step % self.histograms == 0


def group_name(parameter: str) -> str:
    """`decoder/blocks/attention/query/kernel` -> `decoder/attention/query`."""
    parts = [part for part in parameter.split("/") if part not in ("blocks", "kernel")]
    return "/".join(parts)


def probe(builder: StepBuilder, state: TrainState, batch: Batch) -> dict[str, Any]:
    """What a look at a step gives, before the step is made; traceable.

    Returns:
        `noted`: name -> values by layer; `moments`: as `moment_health`; where the objective has weights in its loss,
        `row_losses` and `row_weights`, sums over each row of the first microbatch.
    """
    rows = jax.tree.map(lambda x: x[:: builder.microbatches], batch)

    def loss(weights):
        module = builder.model.module(state.params)
        module.set_attributes(watched=True, raise_if_not_found=False)
        weighted = rows if weights is None else {**rows, "loss_weights": weights}
        terms, _ = module_totals(module, builder.objective, weighted, builder.head_chunks)
        return combine(terms, dict.fromkeys(terms, 1.0)), nnx.to_pure_dict(nnx.pop(module, nnx.Intermediate))

    found = {"moments": moment_health(state.opt_state)}
    if "loss_weights" in rows:
        weights = rows["loss_weights"]
        nll, noted = jax.grad(loss, has_aux=True)(weights)  # the loss is linear in its weights
        over_row = tuple(range(1, nll.ndim))
        found |= {"row_losses": jnp.sum(nll * weights, over_row), "row_weights": jnp.sum(weights, over_row)}
    else:
        _, noted = loss(None)
    return {**found, "noted": named_leaves(noted)}


def moment_health(opt_state: Any) -> dict[str, dict[str, jax.Array]]:
    """By parameter group: the share of second moments that are tiny, and the largest |m| / sqrt(v) of the others."""
    first, second = (_moments(opt_state, name) for name in ("mu", "nu"))
    tiny, ratio = {}, {}
    for name, v in second.items():
        root = jnp.sqrt(v.astype(jnp.float32))
        tiny[group_name(name)] = jnp.mean(root < TINY)
        ratio[group_name(name)] = jnp.max(jnp.where(root < TINY, 0, jnp.abs(first[name]) / jnp.maximum(root, TINY)))
    return {"adam_tiny_second_moments": tiny, "adam_max_ratio": ratio}


def _moments(opt_state: Any, name: str) -> dict[str, jax.Array]:
    found = optax.tree.get_all_with_path(opt_state, name)
    return named_leaves(restored(jax.device_put(found[0][1], jax.memory.Space.Device))) if found else {}


def readable(model: FunctionalModel, values: dict[str, Any], sources: Sequence[str | None] = ()) -> dict[str, Any]:
    """Fetched values by the names they have in metrics.jsonl: numbers, and lists with one number a layer.

    Args:
        model: of the run.
        values: of a step, with those of `probe` where it was looked at.
        sources: of the rows that `row_losses` speaks of; None past the end of the data.
    """
    values = dict(values)
    named = {}
    if NORMS in values:
        named |= _norms(model, values.pop(NORMS))
    named |= {name: _number(value) for name, value in values.pop("noted", {}).items()}
    for name, groups in values.pop("moments", {}).items():
        named |= {f"{name}/{group}": _number(value) for group, value in groups.items()}
    losses, weights = values.pop("row_losses", None), values.pop("row_weights", None)
    for source in sorted({source for source in sources if source is not None}) if losses is not None else ():
        mine = np.array([each == source for each in sources])
        if weights[mine].sum() > 0:
            named[f"loss_of_source/{source}"] = float(losses[mine].sum() / weights[mine].sum())
    return {**{name: float(value) for name, value in values.items()}, **named}


def _norms(model: FunctionalModel, squares: dict[str, np.ndarray]) -> dict[str, Any]:
    """Norms and RMS by group from the sums of squares [T] of each kind, and the ratio of update to parameter."""
    named, start = {}, 0
    axes = named_leaves(model.logical_axes(), is_leaf=lambda node: isinstance(node, tuple))
    for name, shape in named_leaves(model.shapes).items():
        layers = shape.shape[0] if axes[name][:1] == ("layers",) else None  # a scalar has no axis
        span = slice(start, start + (layers or 1))
        start = span.stop
        norms = {kind: np.sqrt(np.asarray(values, float)[span]) for kind, values in squares.items()}
        norms["update_ratio"] = norms["update"] / np.maximum(norms["param"], 1e-30)
        for kind, norm_N in norms.items():
            norm_N = norm_N if layers else norm_N[0]
            if kind == "update_ratio":
                named[f"{kind}/{group_name(name)}"] = _number(norm_N)
                continue
            named[f"{kind}_norm/{group_name(name)}"] = _number(norm_N)
            named[f"{kind}_rms/{group_name(name)}"] = _number(norm_N / np.sqrt(shape.size / (layers or 1)))
    return named


def _number(value: Any) -> Any:
    return np.asarray(value, float).tolist()


def bounds() -> np.ndarray:
    """Upper bounds of the bins of histograms: 0, then by parts of decades; what is larger is in the last."""
    low, high = DECADES
    return np.concatenate([[0.0], 10.0 ** np.arange(low, high + 1e-9, 1 / STEPS_OF_DECADE)])


def histograms(builder: StepBuilder, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
    """Counts of absolute values by parameter group, gradients and moments too; traceable."""
    grads, _ = builder.gradients(state.params, batch)
    trees = {
        "params": named_leaves(state.params),
        "gradients": named_leaves(grads),
        "first_moments": _moments(state.opt_state, "mu"),
        "second_moments": _moments(state.opt_state, "nu"),
    }
    edges = jnp.asarray(bounds()[:-1], jnp.float32)

    def counts(x):
        place = jnp.searchsorted(edges, jnp.abs(x.astype(jnp.float32)).reshape(-1), side="left")
        return jnp.bincount(place, length=len(edges) + 1)

    return {f"{kind}/{group_name(name)}": counts(x) for kind, tree in trees.items() for name, x in tree.items()}


class Instruments:
    """The looks that a run takes inside, compiled when the first is due.

    Args:
        config: how often.
        builder: functions of the run.
        compiled: compiles a function of state and batch for the run's mesh, with replicated results.
        sources: batch -> source of each of its rows over all hosts; None where it is not known.
    """

    def __init__(
        self,
        config: Statistics,
        builder: StepBuilder,
        compiled: Callable[[Callable], Callable],
        sources: Callable[[int], Sequence[str | None]] | None = None,
    ):
        self.config, self._builder, self._sources = config, builder, sources
        self._probe = compiled(lambda state, batch: probe(builder, state, batch))
        self._histograms = compiled(lambda state, batch: histograms(builder, state, batch))

    def look(self, state: TrainState, batch: Batch) -> dict[str, Any]:
        """What `probe` gives of the step that is about to be made; not fetched."""
        return self._probe(state, batch)

    def draw(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
        """Counts of `histograms` on the host."""
        return jax.device_get(self._histograms(state, batch))

    def fetch(self, step: int, scalars: dict[str, Any], batch: int) -> dict[str, Any]:
        """A step's metrics on the host, under the names of metrics.jsonl.

        Args:
            step: number of the step.
            scalars: what the step and `look` gave.
            batch: that it was made with.
        """
        due = self.config.due(step)
        values = jax.device_get({name: value for name, value in scalars.items() if due or name != NORMS})
        rows = self._sources(batch)[:: self._builder.microbatches] if due and self._sources is not None else ()
        return readable(self._builder.model, values, rows)

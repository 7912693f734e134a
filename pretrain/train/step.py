"""One training step: forward, head, loss, gradients, update, as a single compiled function.

The loss is a sum over terms of coefficient * total(sum) / total(weight). Weights depend on the batch alone, so their
totals are known before the first microbatch, and accumulated gradients equal those of the whole batch.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pretrain.core.objective import Metrics, Terms
from pretrain.models.functional import FunctionalModel, Params
from pretrain.objectives.base import Objective
from pretrain.optim.clipping import SkipState
from pretrain.sharding.placement import split_gradients
from pretrain.sharding.rules import parallelism
from pretrain.train.control import Control, LossScale, begin_rate, rate_factor, scaled
from pretrain.train.coupled import coupled_gradients
from pretrain.train.state import TrainState

NORMS = "norms"  # among a step's scalars: sums of squares by group, for `statistics`
Batch = dict[str, jax.Array]
Totals = tuple[Terms, Metrics]


def objective_totals(model: FunctionalModel, objective: Objective, params: Params, batch: Batch, chunks: int) -> Totals:
    """Loss terms and metrics of a batch; with `chunks` > 1 the head and loss see one part of the length at a time.

    Logits are the largest array of a language model; in parts, computed again in the backward pass, they never exist
    whole.
    """
    return module_totals(model.module(params), objective, batch, chunks)


def module_totals(module: Any, objective: Objective, batch: Batch, chunks: int) -> Totals:
    """As `objective_totals`, of a module inside a trace."""
    hidden, terms, metrics = objective.forward(module, batch)
    if chunks == 1 or not objective.model_needs.chunkable:
        more_terms, more_metrics = objective.loss(objective.head(module, hidden, batch), batch)
        return {**terms, **more_terms}, {**metrics, **more_metrics}
    parts = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0), (hidden, batch))

    @jax.checkpoint
    def of_part(part):
        return objective.loss(objective.head(module, *part), part[1])

    def add_part(totals, part):
        return jax.tree.map(jnp.add, totals, of_part(part)), None

    shapes = jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts))
    more_terms, more_metrics = jax.lax.scan(add_part, _zeros(shapes), parts)[0]
    return {**terms, **more_terms}, {**metrics, **more_metrics}


def total_weights(model: FunctionalModel, objective: Objective, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """Each term's weight over the batch, from the objective itself; the compiler drops all but what weights need."""

    def outputs(params, batch):
        module = model.module(params)
        return objective.head(module, objective.forward(module, batch).hidden, batch)

    terms = dict(objective.forward(model.module(params), batch).terms)
    terms |= objective.loss(_zeros(jax.eval_shape(outputs, params, batch)), batch)[0]
    return {name: jnp.maximum(term.weight, 1e-9) for name, term in terms.items()}


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def combine(terms: Terms, weights: dict[str, jax.Array]) -> jax.Array:
    """The scalar that is trained."""
    return sum(term.coefficient * term.sum / weights[name] for name, term in terms.items())


@dataclasses.dataclass(frozen=True)
class StepBuilder:
    """Makes the functions of a run: `train(state, batch) -> (state, metrics)`, `evaluate(params, batch) -> totals`.

    Attributes:
        model, objective: what is trained on what.
        optimizer: gradient transformation.
        learning_rate: step -> learning rate, for the metrics.
        microbatches: parts a batch is accumulated over; must divide the batch size.
        head_chunks: parts of the length for head and loss; must divide the length.
        loss_scale: of float16; its optimizer must leave out updates that are not finite. None: not scaled.
        steers_rate: the state holds a factor on the learning rate, for recoveries that lower it.
        measures: the metrics hold sums of squares of gradients, parameters and updates, by group and layer.
    """

    model: FunctionalModel
    objective: Objective
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    microbatches: int = 1
    head_chunks: int = 1
    loss_scale: LossScale | None = None
    steers_rate: bool = False
    measures: bool = False

    def begin_control(self) -> Control:
        """What the state of these steps begins with as its `control`."""
        return {**(self.loss_scale.begin() if self.loss_scale else {}), **(begin_rate() if self.steers_rate else {})}

    def loss(
        self, params: Params, batch: Batch, weights: dict[str, jax.Array], scale: jax.Array | float = 1.0
    ) -> tuple[jax.Array, Totals]:
        """This batch's share of the loss when each term is divided by `weights`, times `scale`."""
        terms, metrics = objective_totals(self.model, self.objective, params, batch, self.head_chunks)
        return scaled(combine(terms, weights), scale), (terms, metrics)

    def gradients(self, params: Params, batch: Batch, scale: jax.Array | float = 1.0) -> tuple[Params, Totals]:
        """Gradients of the whole-batch loss times `scale`, accumulated over microbatches in float32, and the totals."""
        weights = total_weights(self.model, self.objective, params, batch)
        grad = jax.grad(functools.partial(self.loss, scale=scale), has_aux=True)
        lay_out = functools.partial(split_gradients, axes=self.model.logical_axes())
        if self.microbatches == 1:
            grads, totals = grad(params, batch, weights)
            return lay_out(grads, accumulating=False), totals
        parts = jax.tree.map(self._split, batch)
        if self.objective.couples_batch:
            return self._coupled_gradients(params, batch, parts, weights, scale)

        def add(carry, part):
            grads, totals = jax.tree.map(jnp.add, carry, grad(params, part, weights))
            return (lay_out(grads, accumulating=True), totals), None

        shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parts), weights)
        grads, totals = jax.lax.scan(add, _zeros(shapes), parts)[0]
        return lay_out(grads, accumulating=False), totals

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update, and float32 scalars for the metrics."""
        scale = state.control["loss_scale"] if self.loss_scale else 1.0
        grads, (terms, metrics) = self.gradients(state.params, batch, scale)
        grads = scaled(grads, 1 / scale)
        opt_state = state.opt_state
        if parallelism().offload_optimizer:
            opt_state = jax.device_put(opt_state, jax.memory.Space.Device)
        updates, opt_state = self.optimizer.update(grads, opt_state, state.params)
        factor = rate_factor(state.control, state.step)
        updates = scaled(updates, factor)
        params = self.model.advance(optax.apply_updates(state.params, updates), metrics)
        scalars = {
            **summarize(terms, metrics),
            "learning_rate": self.learning_rate(state.step) * factor,
            "grad_norm": optax.tree.norm(grads),  # which clipping needs as well: it is made once
            **self._norms(grads, params, updates),
        }
        if isinstance(opt_state, SkipState):
            scalars["skipped_updates"] = opt_state.skipped
            scalars["update_skipped"] = opt_state.skipped - state.opt_state.skipped
        control = state.control
        if self.loss_scale:
            scalars["loss_scale"] = scale
            control = self.loss_scale.follow(control, jnp.isfinite(scalars["grad_norm"]))
        return TrainState(state.step + 1, params, opt_state, state.rng, control), scalars

    def evaluate(self, params: Params, batch: Batch) -> Totals:
        """Loss terms and metrics of a batch, as sums to be added over batches."""
        return objective_totals(self.model, self.objective, params, batch, self.head_chunks)

    def _norms(self, grads: Params, params: Params, updates: Params) -> dict[str, Any]:
        """Norms of parameters and updates; where it measures, they come from the sums by group, which are kept."""
        if not self.measures:
            return {"param_norm": optax.tree.norm(params), "update_norm": optax.tree.norm(updates)}
        squares = {"grad": self._squares(grads), "param": self._squares(params), "update": self._squares(updates)}
        norms = {f"{kind}_norm": jnp.sqrt(jnp.sum(squares[kind])) for kind in ("param", "update")}
        return {**norms, NORMS: squares}

    def _squares(self, tree: Params) -> jax.Array:
        """Sums of squares of a tree like the parameters, layer by layer where they are stacked: float32 vector."""

        def of_leaf(x, axes):
            kept = 1 if axes[:1] == ("layers",) else 0
            return jnp.sum(jnp.square(x.astype(jnp.float32)), axis=tuple(range(kept, x.ndim))).reshape(-1)

        return jnp.concatenate(jax.tree.leaves(jax.tree.map(of_leaf, tree, self.model.logical_axes())))

    def _coupled_gradients(self, params: Params, batch: Batch, parts: Batch, weights, scale) -> tuple[Params, Totals]:
        objective = self.objective

        def represent(params, part):
            module = self.model.module(params)
            hidden, terms, metrics = objective.forward(module, part)
            own = scaled(jnp.asarray(combine(terms, weights), jnp.float32), scale)
            return objective.head(module, hidden, part), (own, (terms, metrics))

        def loss(outputs):
            terms, metrics = objective.loss(outputs, batch)
            return scaled(combine(terms, weights), scale), (terms, metrics)

        return coupled_gradients(represent, loss, params, parts)

    def _split(self, x: jax.Array) -> jax.Array:
        """[batch, ...] -> [microbatches, batch / microbatches, ...], each part spread over all devices."""
        return jnp.moveaxis(x.reshape(x.shape[0] // self.microbatches, self.microbatches, *x.shape[1:]), 1, 0)


def summarize(terms: Terms, metrics: Metrics) -> dict[str, Any]:
    """Sums as readable means: the loss, each term when there are several, each metric; of arrays, least and most."""
    means = {name: term.sum / jnp.maximum(term.weight, 1e-9) for name, term in terms.items()}
    loss = sum(term.coefficient * means[name] for name, term in terms.items())
    values = {"loss": loss, **(means if len(means) > 1 else {})}
    for name, (total, weight) in metrics.items():
        ratio = total / jnp.maximum(weight, 1e-9)
        values |= {name: ratio} if ratio.ndim == 0 else {f"{name}_min": ratio.min(), f"{name}_max": ratio.max()}
    return values

"""One training step: forward, head, loss, gradients, update, as a single compiled function.

The loss is a sum over terms of coefficient * total(sum) / total(weight). Weights depend on the batch alone, so their
totals are known before the first microbatch, and accumulated gradients equal those of the whole batch.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pretrain.models.functional import FunctionalModel, Params
from pretrain.objectives.base import Metrics, Objective, Terms
from pretrain.train.state import TrainState

Batch = dict[str, jax.Array]
Totals = tuple[Terms, Metrics]


def objective_totals(model: FunctionalModel, objective: Objective, params: Params, batch: Batch, chunks: int) -> Totals:
    """Loss terms and metrics of a batch; with `chunks` > 1 the head and loss see one part of the length at a time.

    Logits are the largest array of a language model; in parts, computed again in the backward pass, they never exist
    whole.
    """
    module = model.module(params)
    hidden_BLD = objective.forward(module, batch)
    if chunks == 1:
        return objective.loss(module.head(hidden_BLD), batch)
    length = hidden_BLD.shape[1]
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(x.shape[0], chunks, length // chunks, *x.shape[2:]), 1, 0), (hidden_BLD, batch)
    )

    @jax.checkpoint
    def of_part(part):
        return objective.loss(module.head(part[0]), part[1])

    def add_part(totals, part):
        return jax.tree.map(jnp.add, totals, of_part(part)), None

    zeros = jax.tree.map(
        lambda x: jnp.zeros((), jnp.float32), jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], parts))
    )
    return jax.lax.scan(add_part, zeros, parts)[0]


def total_weights(model: FunctionalModel, objective: Objective, params: Params, batch: Batch) -> dict[str, jax.Array]:
    """Each term's weight over the batch, from the objective itself on blank logits; the compiler drops the rest."""
    logits = jax.eval_shape(lambda p, b: model.module(p).head(objective.forward(model.module(p), b)), params, batch)
    terms, _ = objective.loss(jnp.zeros(logits.shape, logits.dtype), batch)
    return {name: jnp.maximum(term.weight, 1e-9) for name, term in terms.items()}


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
    """

    model: FunctionalModel
    objective: Objective
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[jax.Array], jax.Array]
    microbatches: int = 1
    head_chunks: int = 1

    def loss(self, params: Params, batch: Batch, weights: dict[str, jax.Array]) -> tuple[jax.Array, Totals]:
        """This batch's share of the loss when each term is divided by `weights`."""
        terms, metrics = objective_totals(self.model, self.objective, params, batch, self.head_chunks)
        return combine(terms, weights), (terms, metrics)

    def gradients(self, params: Params, batch: Batch) -> tuple[Params, Totals]:
        """Gradients of the whole-batch loss, accumulated over microbatches in float32, and the totals."""
        weights = total_weights(self.model, self.objective, params, batch)
        grad = jax.grad(self.loss, has_aux=True)
        if self.microbatches == 1:
            return grad(params, batch, weights)
        parts = jax.tree.map(self._split, batch)

        def add(carry, part):
            return jax.tree.map(jnp.add, carry, grad(params, part, weights)), None

        shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parts), weights)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(add, zeros, parts)[0]

    def train(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """One update, and float32 scalars for the metrics."""
        grads, (terms, metrics) = self.gradients(state.params, batch)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        scalars = {
            **summarize(terms, metrics),
            "learning_rate": self.learning_rate(state.step),
            "grad_norm": optax.tree.norm(grads),
            "param_norm": optax.tree.norm(params),
            "update_norm": optax.tree.norm(updates),
        }
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), scalars

    def evaluate(self, params: Params, batch: Batch) -> Totals:
        """Loss terms and metrics of a batch, as sums to be added over batches."""
        return objective_totals(self.model, self.objective, params, batch, self.head_chunks)

    def _split(self, x: jax.Array) -> jax.Array:
        """[batch, ...] -> [microbatches, batch / microbatches, ...], each part spread over all devices."""
        return jnp.moveaxis(x.reshape(x.shape[0] // self.microbatches, self.microbatches, *x.shape[1:]), 1, 0)


def summarize(terms: Terms, metrics: Metrics) -> dict[str, Any]:
    """Sums as readable means: the loss, each term when there are several, each metric."""
    means = {name: term.sum / jnp.maximum(term.weight, 1e-9) for name, term in terms.items()}
    loss = sum(term.coefficient * means[name] for name, term in terms.items())
    ratios = {name: total / jnp.maximum(weight, 1e-9) for name, (total, weight) in metrics.items()}
    return {"loss": loss, **(means if len(means) > 1 else {}), **ratios}

"""Statistics against what they are defined as, and their way into metrics.jsonl and TensorBoard."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import CONFIG, TINY_GIN, model, packed_rows, params

from pretrain.core.errors import UserError
from pretrain.core.trees import named_leaves
from pretrain.experiment import Experiment
from pretrain.models.attention import Sight, attention_mask, largest_logit
from pretrain.objectives.causal import Causal
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.train.metrics import read_metrics
from pretrain.train.state import TrainState
from pretrain.train.statistics import Statistics, bounds, histograms, moment_health, probe, readable
from pretrain.train.step import StepBuilder

SOURCES = ["books", "code", "books", None]


@pytest.fixture(scope="module")
def looked_at():
    """Builder, state, batch, gradients, and the fetched values of a step that was looked at, in two microbatches."""
    functional = model(CONFIG)
    optimizer, rate = build_optimizer(Optimizer(), Schedule(warmup_steps=1), 10, functional.logical_axes())
    builder = StepBuilder(
        functional, Causal(z_loss=1e-3), optimizer, rate, microbatches=2, head_chunks=2, measures=True
    )
    values = params(CONFIG)
    state = TrainState(jnp.int32(3), values, optimizer.init(values), jax.random.key_data(jax.random.key(0)))
    packed = packed_rows([[10, 6], [16], [16], [9], [3, 4, 5], [2], [12], [0]], 16)
    batch = builder.objective.finish(packed, np.random.default_rng(0))

    @jax.jit
    def step(state, batch):
        return probe(builder, state, batch), builder.train(state, batch), builder.gradients(state.params, batch)[0]

    seen, (after, scalars), grads = jax.device_get(step(state, batch))
    return builder, state, after, batch, grads, {**scalars, **seen}


def test_norms_by_group_and_layer(looked_at):
    builder, _, after, _, grads, values = looked_at
    found = readable(builder.model, values)
    query = named_leaves(grads)["decoder/blocks/attention/query/kernel"]
    expected = np.sqrt(np.mean(np.square(query), axis=(1, 2, 3)))
    np.testing.assert_allclose(found["grad_rms/decoder/attention/query"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["grad_norm/decoder/attention/query"], expected * np.sqrt(query[0].size), rtol=1e-5)
    assert found["param_norm/embedding"] == pytest.approx(np.linalg.norm(after.params["embedding"]), rel=1e-5)
    ratio = found["update_norm/embedding"] / found["param_norm/embedding"]
    assert found["update_ratio/embedding"] == pytest.approx(ratio)
    squares = [np.sum(np.square(value)) for name, value in found.items() if name.startswith("grad_norm/")]
    assert np.sqrt(np.sum(squares)) == pytest.approx(found["grad_norm"], rel=1e-5)
    assert isinstance(found["loss"], float)


def test_loss_by_source(looked_at):
    builder, state, _, batch, _, values = looked_at
    found = readable(builder.model, values, SOURCES)
    first = {name: x[::2] for name, x in batch.items()}  # the first microbatch
    for source, rows in (("books", [0, 2]), ("code", [1])):
        part = {name: x[rows] for name, x in first.items()}
        terms, _ = dataclasses.replace(builder, head_chunks=1).evaluate(state.params, part)
        loss = sum(float(term.coefficient * term.sum / term.weight) for term in terms.values())
        assert found[f"loss_of_source/{source}"] == pytest.approx(loss, rel=1e-5)


def test_layers_note_activations_and_attention(looked_at):
    builder, _, _, _, _, values = looked_at
    found = readable(builder.model, values)
    assert len(found["decoder/activation_rms"]) == len(found["decoder/attention_logit_max"]) == CONFIG.num_layers
    assert found["decoder/activation_rms"][1] > found["decoder/activation_rms"][0] > 0
    assert all(-1e3 < value < 1e3 for value in found["decoder/attention_logit_max"])


@pytest.mark.parametrize("length", [12, 256])
def test_the_largest_logit_is_over_what_is_seen(length):
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, length, 4, 8)), rng.normal(size=(2, length, 2, 8))
    segments = np.sort(rng.integers(1, 4, (2, length)))
    mask = np.asarray(attention_mask(jnp.asarray(segments), causal=True))
    scores = np.einsum("blhq,bshq->bhls", q, np.repeat(k, 2, axis=2)) * 0.5
    found = largest_logit(jnp.asarray(q, jnp.float32), jnp.asarray(k, jnp.float32), Sight(jnp.asarray(mask)), 0.5)
    assert float(found) == pytest.approx(scores[np.broadcast_to(mask[:, None], scores.shape)].max(), rel=1e-5)


def test_adams_health():
    optimizer = optax.chain(optax.clip(1.0), optax.scale_by_adam())
    state = optimizer.init({"blocks": {"kernel": jnp.zeros(4)}, "embedding": jnp.zeros(2)})
    adam = state[1]._replace(
        mu={"blocks": {"kernel": jnp.array([0.0, 1.0, -6.0, 9.0])}, "embedding": jnp.zeros(2)},
        nu={"blocks": {"kernel": jnp.array([0.0, 1.0, 4.0, 1e-20])}, "embedding": jnp.ones(2)},
    )
    found = moment_health((state[0], adam))
    assert float(found["adam_tiny_second_moments"][""]) == 0.5 and float(found["adam_max_ratio"][""]) == 3.0
    assert float(found["adam_tiny_second_moments"]["embedding"]) == 0.0


def test_looking_changes_no_bit(looked_at):
    builder, state, after, batch, _, _ = looked_at
    plain, _ = jax.jit(dataclasses.replace(builder, measures=False).train)(state, batch)
    for ours, theirs in zip(jax.tree.leaves(after.params), jax.tree.leaves(plain.params), strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_histograms_count_everything(looked_at):
    builder, state, _, batch, grads, _ = looked_at
    counts = jax.device_get(jax.jit(lambda state, batch: histograms(builder, state, batch))(state, batch))
    embedding = np.abs(grads["embedding"])
    bins = counts["gradients/embedding"]
    assert bins.sum() == embedding.size and bins[0] == np.sum(embedding == 0)
    edges = bounds()
    some = 1 + int(np.argmax(bins[1:]))
    assert bins[some] == np.sum((embedding > edges[some - 1]) & (embedding <= edges[some]))
    assert counts["second_moments/embedding"][0] == embedding.size


def test_a_run_writes_what_it_sees(tiny_cache, tmp_path):
    names = ("Experiment.data", "TRAIN_STEPS", "CHECKPOINT_EVERY", "Statistics.every", "Statistics.histograms")
    values = (f"'{tiny_cache}'", 4, 3, 3, 4)
    bindings = [f"{name}={value}" for name, value in zip(names, values, strict=True)]
    Experiment.from_gin([str(TINY_GIN)], bindings, workdir=str(tmp_path)).train()
    seen, last = read_metrics(tmp_path / "metrics.jsonl")
    assert (seen["step"], last["step"]) == (3, 4) and seen.keys() - last.keys() == seen_names(seen)
    kinds = ("grad_norm", "grad_rms", "param_norm", "update_rms", "update_ratio", "adam_max_ratio")
    assert {f"{kind}/{group}" for kind in kinds for group in ("decoder/attention/query", "embedding")} <= seen.keys()
    assert len(seen["decoder/activation_rms"]) == 2
    losses = [value for name, value in seen.items() if name.startswith("loss_of_source/")]
    assert losses and min(losses) <= seen["loss"] + 1e-4 and max(losses) >= seen["loss"] - 1e-4
    kept = json.loads((tmp_path / "checkpoints" / "3" / "manifest.json").read_text())["metrics"]
    assert all(isinstance(value, float | int) for value in kept.values()) and kept["loss"] == seen["loss"]
    assert b"gradients/embedding" in b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())


def seen_names(row: dict) -> set[str]:
    """The names of statistics in a row of metrics."""
    return {name for name, value in row.items() if isinstance(value, list) or "/" in name}


def test_the_same_on_eight_devices(eight_devices):
    for name, entry in eight_devices["looks"].items():
        assert entry.keys() == {"noted", "row_losses", "row_weights"} and max(entry.values()) < 2e-6, (name, entry)


def test_wrong_values_are_refused():
    with pytest.raises(UserError, match="every must be >= 0"):
        Statistics(every=-1)

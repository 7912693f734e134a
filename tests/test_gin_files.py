"""Every gin file that is shipped parses, and every run file builds its model and takes a training step, by shape."""

from pathlib import Path

import jax
import numpy as np
import pytest

from pretrain.core import config as gin_config
from pretrain.core.trees import size
from pretrain.curate.recipe import Recipe
from pretrain.experiment import Experiment
from pretrain.models.build import build_model
from pretrain.models.config import TransformerConfig
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.train.state import init_state
from pretrain.train.step import StepBuilder

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(p for folder in ("gin_configs", "data_recipes") for p in (ROOT / folder).rglob("*.gin"))
RUNS = sorted((ROOT / "gin_configs" / "runs").glob("*.gin"))
MACROS = {
    "TRAIN_STEPS",
    "BATCH_SIZE",
    "SEQUENCE_LENGTH",
    "INPUT",
    "REMAT",
    "SEED",
    "LOG_EVERY",
    "CHECKPOINT_EVERY",
    "EVAL_EVERY",
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_parses_and_says_what_it_is_for(path):
    gin_config.load([str(path)])
    assert path.read_text().startswith("#")
    assert gin_config.resolved()


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.name)
def test_run_file_takes_a_step(path, tmp_path):
    gin_config.load([str(path)])
    assert set(gin_config.declared_macros()) >= MACROS
    experiment, config = Experiment(str(tmp_path)), TransformerConfig().with_vocab(300)
    model = build_model(config, experiment.objective.model_needs)
    assert size(model.shapes) > 0
    training = experiment.training
    optimizer, rate = build_optimizer(Optimizer(), Schedule(), training.steps, model.logical_axes())
    builder = StepBuilder(model, experiment.objective, optimizer, rate, training.microbatches, training.head_chunks)
    specs = experiment.objective.batch_spec(training.batch_size, training.sequence_length)
    state = jax.eval_shape(lambda: init_state(model, optimizer, training.seed))
    batch = {name: jax.ShapeDtypeStruct(spec.shape, np.dtype(spec.dtype)) for name, spec in specs.items()}
    after, metrics = jax.eval_shape(builder.train, state, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert metrics["loss"].shape == ()


@pytest.mark.parametrize("path", sorted((ROOT / "data_recipes").glob("*.gin")), ids=lambda p: p.name)
def test_recipe_builds(path):
    gin_config.load([str(path)])
    assert Recipe().stages


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_a_run_writes_down_is_the_same_run(path, tmp_path):
    """Tables keep no order in the file."""
    gin_config.load([str(path)])
    before = gin_config.resolved()
    (tmp_path / "config.gin").write_text(gin_config.text())
    gin_config.load([str(tmp_path / "config.gin")])
    assert gin_config.differences(before, gin_config.resolved()) == []

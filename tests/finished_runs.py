"""Whether two runs ended alike: every bit of the final state, the data position and every metric but the times."""

import json
import pathlib

import jax
import numpy as np

from pretrain.experiment import Experiment
from pretrain.train.checkpoint import Checkpointer
from pretrain.train.metrics import read_metrics

TIMES = {"seconds", "tokens_per_second", "data_wait", "mfu"}


def final_state(workdir: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
    """The last checkpoint's arrays by name, and its data position."""
    experiment = Experiment.open(str(workdir))
    trainer = experiment.trainer()
    shapes = jax.eval_shape(trainer.initial_state)
    with Checkpointer(workdir / "checkpoints", read_only=True) as checkpointer:
        state, position = checkpointer.restore(shapes, trainer.state_shardings)
    return {
        jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(state)
    }, position


def metrics(workdir: pathlib.Path) -> list[dict]:
    """The rows without what depends on the clock."""
    rows = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_same_end(found: pathlib.Path, expected: pathlib.Path) -> None:
    (arrays, position), (expected_arrays, expected_position) = final_state(found), final_state(expected)
    assert position == expected_position
    assert arrays.keys() == expected_arrays.keys()
    for name, array in expected_arrays.items():
        assert arrays[name].tobytes() == array.tobytes(), name
    assert json.dumps(metrics(found)) == json.dumps(metrics(expected))

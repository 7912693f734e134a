"""What every objective must hold. A new file in `pretrain/objectives` is found and checked without an edit here.

An objective that needs other packed features than those of `tiny.packed_rows` gives them in `PACKED`; settings that
say more than the defaults go into `SETTINGS`.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import jax
import numpy as np
from tiny import CONFIG, UNEVEN, model, packed_rows

import pretrain.objectives
from pretrain.core.batch import Batch
from pretrain.core.rng import host_rng
from pretrain.objectives.base import Objective
from pretrain.train.step import StepBuilder

LENGTH = 16
SETTINGS: dict[str, list[dict]] = {"Causal": [{"z_loss": 0.01}]}  # two terms
PACKED: dict[str, Callable[[], Batch]] = {}


def objective_classes() -> list[type[Objective]]:
    """Every concrete objective in `pretrain.objectives`, by name."""
    found = {}
    for info in pkgutil.walk_packages(pretrain.objectives.__path__, "pretrain.objectives."):
        for name, member in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            if issubclass(member, Objective) and not inspect.isabstract(member):
                found[name] = member
    return [found[name] for name in sorted(found)]


def cases() -> dict[str, Objective]:
    """Objectives by a readable name, each with every setting that is checked."""
    return {
        f"{kind.__name__}({', '.join(f'{k}={v}' for k, v in settings.items())})": kind(**settings)
        for kind in objective_classes()
        for settings in SETTINGS.get(kind.__name__, [{}])
    }


def packed(objective: Objective, lengths: list[list[int]] = UNEVEN) -> Batch:
    """Packed rows of very different weight, as the loader gives them to `finish`."""
    kind = type(objective).__name__
    return PACKED[kind]() if kind in PACKED else packed_rows(lengths, LENGTH)


def batch(objective: Objective) -> Batch:
    """A finished batch."""
    return objective.finish(packed(objective), host_rng(0, "finish", 0))


def builder(objective: Objective, **changes) -> StepBuilder:
    """The training step of an objective on the tiny model."""
    return StepBuilder(model(CONFIG), objective, optimizer=None, learning_rate=None, **changes)


def loss_and_gradients(objective: Objective, params: dict, arrays: Batch, **changes) -> tuple[dict, dict]:
    """Total sums and weights of the terms, and gradients of the trained loss."""
    grads, (terms, _) = jax.jit(builder(objective, **changes).gradients)(params, arrays)
    return {name: (float(t.sum), float(t.weight), t.coefficient) for name, t in terms.items()}, grads


def assert_same(found: tuple[dict, dict], expected: tuple[dict, dict], rtol: float = 2e-5) -> None:
    """Equal terms and gradients, to rounding of float32 sums in another order."""
    assert found[0].keys() == expected[0].keys()
    for name, values in expected[0].items():
        np.testing.assert_allclose(found[0][name], values, rtol=rtol, err_msg=name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=rtol * np.abs(b).max() + 1e-9),
        found[1],
        expected[1],
    )

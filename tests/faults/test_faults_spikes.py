"""Faults planted in a run: each found within two steps, overcome, the end as good as a clean run's. False alarms.

The clean run never sees the fault: it leaves out the same batches from the start.
"""

import os

import pytest
from finished_runs import assert_same_end
from loss_curves import clean_curves, findings
from planted import FAULTS, MOMENTS, STEPS, in_a_process, overcome, trainer

from pretrain.train.metrics import read_metrics
from pretrain.train.recovery import Course
from pretrain.train.spikes import Detector

SEED = int(os.environ.get("FAULT_SEED", "0"))
RUNS, CURVE = 500, 2_000


def end(workdir) -> dict:
    """The last row of metrics."""
    return read_metrics(workdir / "metrics.jsonl")[-1]


@pytest.fixture(scope="module")
def clean(tiny_cache, tmp_path_factory):
    """The loss of a run that nothing was planted in."""
    folder = tmp_path_factory.mktemp("clean") / "run"
    trainer(folder, tiny_cache, None, (f"Training.seed={SEED}",)).run()
    return end(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_overcome(fault, clean, tiny_cache, tmp_path):
    seeded = (f"Training.seed={SEED}",)
    faulty = trainer(tmp_path / "run", tiny_cache, fault, seeded)
    faulty.run()
    event, skips = overcome(tmp_path / "run", fault), faulty.watch.course.skips
    sound = trainer(tmp_path / "sound", tiny_cache, None, seeded)
    sound.watch.course = Course(skips)
    sound.run()
    found, never, all_data = (row["validation_loss"] for row in (end(tmp_path / "run"), end(tmp_path / "sound"), clean))
    print(
        f"{fault}: {event['signal']} at step {event['step']}, back to {event['to']}, batches {skips} left out "
        f"in the end; validation loss after {STEPS} steps {found:.5f}, without those batches from the start "
        f"{never:.5f}, of a run with nothing planted {all_data:.5f}"
    )
    assert abs(found / never - 1) <= 0.01


@pytest.fixture(scope="module")
def rewound(tiny_cache, tmp_path_factory):
    """A run that rewound and was not killed."""
    folder = tmp_path_factory.mktemp("rewound") / "run"
    in_a_process(folder, tiny_cache, "poisoned")
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_any_moment_of_a_rewind_it_ends_the_same(moment, rewound, tiny_cache, tmp_path):
    in_a_process(tmp_path / "killed", tiny_cache, "poisoned", killed=moment)
    overcome(tmp_path / "killed", "poisoned")
    assert_same_end(tmp_path / "killed", rewound)


def test_false_alarms_are_rare():
    alarms, steps = [], 0
    for part in range(10):
        alarms += findings(Detector(), *clean_curves(RUNS, CURVE, seed=1000 * SEED + part))
        steps += RUNS * CURVE
    print(f"{len(alarms)} false alarms in {steps:.3g} steps: {alarms[:20]}")
    assert len(alarms) <= steps / 1e5

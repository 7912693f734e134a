"""The detector: what is found and when, what is not, and that a replay finds the same."""

import json

import numpy as np
import pytest
from loss_curves import clean_curves, findings

from pretrain.core.errors import UserError
from pretrain.train.spikes import NOTHING, Detector, State, fresh, observe

CONFIG = Detector()


@pytest.fixture(scope="module")
def clean():
    return clean_curves(100, 1200, seed=10)


def test_false_alarms_are_rare_on_clean_runs(clean):
    found = findings(CONFIG, *clean)
    assert len(found) <= 1, found  # of 1.2e5 steps, 1 in 1e5 allowed; `python tests/loss_curves.py` does more


def planted(clean, change, start: int = 700, steps: int = 10) -> list[list[tuple]]:
    """Findings by run when `change` was made to 20 clean curves at step `start`, looked at from 150 steps before."""
    first = max(start - 150, 0)
    loss, norm = (each[:20, first : start + steps].copy() for each in clean)
    with np.errstate(all="ignore"):
        change(loss[:, start - first :], norm[:, start - first :])
    found = [(run, first + step, *more) for run, step, *more in findings(CONFIG, loss, norm)]
    return [[each for each in found if each[0] == run and each[1] >= start] for run in range(20)]


def test_a_batch_far_out_is_found_at_once(clean):
    def poison(loss, norm):
        loss[:, 0] *= 5

    for found in planted(clean, poison):
        assert found[0][1:] == (700, "loss", 0)


def test_a_level_that_jumps_is_found_at_its_second_step(clean):
    def jump(loss, norm):
        loss += loss[:, :1]

    for found in planted(clean, jump):
        _, step, signal, began = found[0]
        assert step in (700, 701) and signal == "loss" and step - began == 700


def test_gradients_that_jump_are_found_though_the_loss_stays(clean):
    def jump(loss, norm):
        norm[:, :4] *= 1000

    for found in planted(clean, jump):
        assert found[0][1] in (700, 701) and found[0][2] == "gradient norm"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("signal", [0, 1])
@pytest.mark.parametrize("start", [0, 5, 700])
def test_what_is_not_finite_is_found_at_once(clean, value, signal, start):
    def spoil(*signals):
        signals[signal][:, 0] = value

    for found in planted(clean, spoil, start):
        assert found[0][1:] == (start, "not finite", 0)


def test_a_slow_climb_is_found(clean):
    def climb(loss, norm):
        loss *= 1 + np.arange(400) * 0.002

    for found in planted(clean, climb, steps=400):
        assert found
        assert {each[2] for each in found} <= {"slow divergence", "loss"}


def test_falls_and_rests_are_no_spikes():
    step = np.arange(1500)
    loss = 10 * np.maximum(0.25, 1 - step / 400)[None] + 0.01 * np.random.default_rng(0).standard_normal((4, 1500))
    assert findings(CONFIG, loss, np.ones((4, 1500))) == []


def test_a_jump_in_a_steep_fall_is_found():
    """91 steps in which the loss falls from 5.5 to 1, as in the first minutes of a run, do not hide a jump back."""
    fall = 1 + 4.5 * np.exp(-np.arange(91) / 30)
    loss = np.concatenate([fall, [5.5, 5.5]]) + 0.05 * np.random.default_rng(0).normal(size=(20, 93))
    found = findings(CONFIG, loss, np.ones((20, 93)))
    assert sorted(run for run, *_ in found) == list(range(20))
    assert all(step in (91, 92) and signal == "loss" and step - began == 91 for _, step, signal, began in found)


def test_a_new_level_is_told_once_and_then_taken_for_granted():
    loss = np.concatenate([np.full(300, 2.0), np.full(700, 4.0)]) + 0.02 * np.random.default_rng(0).normal(size=1000)
    found = [each[1:3] for each in findings(CONFIG, loss[None], np.ones((1, 1000)))]
    assert found[0] == (300, "loss") and len(found) <= 5 and found[-1][0] < 600, found


def test_an_overflow_says_nothing_of_the_gradient():
    state = fresh(CONFIG)
    for step in range(50):
        state, finding = observe(CONFIG, state, 2.0 + 0.01 * (step % 3), None if step % 7 == 0 else 1.0)
        assert finding.signal_R == NOTHING
    assert np.isfinite(state.values_RSW).all()


def test_a_state_kept_as_json_goes_on_the_same(clean):
    loss, norm = clean[0][0, :500].copy(), clean[1][0]
    loss[300:] += 3

    def run(kept: bool) -> list:
        state, found = fresh(CONFIG), []
        for step in range(len(loss)):
            if kept and step % 37 == 0:
                state = State.from_json(json.loads(json.dumps(state.to_json())), CONFIG)
            state, finding = observe(CONFIG, state, loss[step], norm[step])
            found.append([array.tolist() for array in finding])
        return found

    assert json.dumps(run(True)) == json.dumps(run(False))


def test_a_state_of_another_window_is_begun_anew():
    state, _ = observe(CONFIG, fresh(CONFIG), 1.0, 1.0)
    for _ in range(100):
        state, _ = observe(CONFIG, state, 1.0, 1.0)
    assert State.from_json(state.to_json(), Detector(window=64)).count == 0
    assert State.from_json(state.to_json(), CONFIG).count == 101


@pytest.mark.parametrize("wrong", [{"window": 8}, {"least": 500}, {"alert": 30.0}, {"slow_rise": 0.0}])
def test_wrong_values_are_refused(wrong):
    with pytest.raises(UserError, match="Detector"):
        Detector(**wrong)

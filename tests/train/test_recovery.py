"""Rewinds: where to, around what, how often, and that planted faults are found and overcome."""

import json

import jax
import numpy as np
import pytest
from finished_runs import assert_same_end, metrics
from planted import AT, in_a_process, overcome, trainer

from pretrain.core import lifeline
from pretrain.core.errors import RunError, UserError
from pretrain.experiment import Experiment
from pretrain.train.events import EventLog, read_events
from pretrain.train.recovery import Course, Recovery, Rewind, Watch
from pretrain.train.spikes import Detector
from pretrain.train.timekeeper import Supervision


def test_a_course_leaves_out_its_skips():
    course = Course(((3, 5), (6, 10)))
    assert [course.batch(step) for step in range(6)] == [0, 1, 2, 5, 10, 11]
    for step in range(6):
        batches = course.batches(lambda start: iter(range(start, 14)), step)
        assert list(batches) == [batch for batch in (0, 1, 2, 5, 10, 11, 12, 13) if batch >= course.batch(step)]
    assert course.around(4, 7) == ((3, 10),)
    assert course.around(12, 14) == ((3, 5), (6, 10), (12, 14))
    assert course.around(0, 3) == ((0, 5), (6, 10))


def watch(tmp_path, **policy) -> Watch:
    recovery = Recovery(policy="rewind", back=10, skip=20, tries=2, **policy)
    return Watch(recovery, Detector(), 10, EventLog(tmp_path), lambda batch: [f"document of {batch}"])


def values(loss: float = 2.0, **more) -> dict[str, float]:
    return {"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3, **more}


def spike(observer: Watch, step: int) -> Rewind:
    with pytest.raises(Rewind) as found:
        observer.observe(step, values(float("nan")))
    return found.value


def test_a_decision_and_its_event(tmp_path):
    observer = watch(tmp_path)
    for step in range(1, 41):
        observer.observe(step, values(2 + 0.01 * (step % 3)))
    found = spike(observer, 41)
    assert (found.step, found.began, found.at_most) == (41, 41, 31)
    course = observer.decide(found, 30)
    assert course == Course(((30, 50),), 1, 41, 30)
    (event,) = read_events(tmp_path)
    assert event["kind"] == "spike" and event["step"] == 41 and event["action"] == "rewind"
    assert event["loss"] == "nan" and 2 < event["loss_median"] < 2.02
    assert event["batches"] == [39, 40] and event["documents"]["40"] == ["document of 40"]
    assert event["to"] == 30 and event["skipped"] == [30, 50] and event["try"] == 1
    assert observer.decide(found, 30) == course and len(read_events(tmp_path)) == 1  # a replay


def test_a_spike_far_on_is_left_out_too(tmp_path):
    observer = watch(tmp_path)
    assert observer.decide(spike(observer, 41), 10).skips == ((10, 41),)


def test_a_spike_that_comes_back_is_left_out_further_on_and_then_from_further_back(tmp_path):
    observer = watch(tmp_path)
    observer.resume(None, observer.decide(spike(observer, 41), 30))
    found = spike(observer, 33)
    assert found.at_most == 30, "the same checkpoint"
    observer.resume(None, observer.decide(found, 30))
    assert observer.course == Course(((30, 93),), 2, 33, 30)  # batch 52, and twice 20 more
    assert spike(observer, 33).at_most == 23
    later = Watch(observer.recovery, Detector(), 10, None)
    later.resume(None, Course(((30, 50),), 1, 41, 30))
    assert spike(later, 60).at_most == 50, "another spike"


def test_tries_end_with_a_diagnosis(tmp_path):
    observer = watch(tmp_path)
    for number in (1, 2):
        course = observer.decide(spike(observer, 41), 30)
        assert course.tries == number
        observer.resume(None, course)
    with pytest.raises(RunError, match=r"rewound 2 times in a row .* --event=3.*overflows"):
        observer.decide(spike(observer, 41), 30)
    assert [event["action"] for event in read_events(tmp_path)] == ["rewind", "rewind", "stop"]
    assert observer.decide(spike(observer, 52), 40).tries == 1  # by then there were good steps between


def test_without_a_whole_checkpoint_it_stops(tmp_path):
    observer = watch(tmp_path)
    with pytest.raises(RunError, match="no whole checkpoint is left at or before step 31"):
        observer.decide(spike(observer, 41), None)


def test_what_is_kept_for_rewinds(tmp_path):
    observer = watch(tmp_path)
    steps = [*range(5, 200, 5), 203]
    kept = observer.wanted(steps)
    assert min(kept) == 130 and set(range(140, 200, 10)) <= set(kept) and all(step % 10 == 0 for step in kept)
    assert Watch(Recovery(), Detector(), 10, None).wanted(steps) == []


def test_other_policies_write_it_down_and_go_on(tmp_path):
    observer = Watch(Recovery(policy="skip_update"), Detector(), 10, EventLog(tmp_path))
    observer.observe(1, values(update_skipped=1.0))
    observer.observe(2, values(float("inf")))
    observer.observe(3, values(float("inf")))  # still the same
    observer.observe(4, {**values(loss_scale=8.0), "grad_norm": float("inf")})  # an overflow of float16 is no spike
    assert [event["kind"] for event in read_events(tmp_path)] == ["skipped_update", "spike"]


@pytest.mark.parametrize("wrong", [{"policy": "hope"}, {"back": 0}, {"lower_rate": 0.0}, {"grid": 0}, {"tries": 0}])
def test_wrong_policies_are_refused(wrong):
    with pytest.raises(UserError, match="Recovery"):
        Recovery(**wrong)


def test_tries_begin_anew_under_another_policy(tmp_path):
    """Or the advice to lower the rate would come too late: the run would stop at the first sign of the spike."""
    observer = watch(tmp_path)
    observer.resume(None, Course(((30, 50),), 2, 41, 30))
    kept = json.loads(json.dumps(observer.kept()))
    for again, tries in ((watch(tmp_path), 2), (watch(tmp_path, lower_rate=0.5), 0)):
        again.resume(kept)
        assert again.course == Course(((30, 50),), tries, 41, 30)


def test_lowering_the_rate_may_begin_and_end_with_a_checkpoint(tiny_cache, tmp_path):
    for steps, rate in ((20, 1.0), (21, 0.5), (22, 1.0)):
        more = (f"TRAIN_STEPS={steps}", f"Recovery.lower_rate={rate}", "Training.eval_every=0")
        state = trainer(tmp_path / "run", tiny_cache, None, more).run()
        assert int(state.step) == steps
        control = {name: float(value) for name, value in state.control.items()}
        assert control == ({} if rate == 1 else {"rate_factor": 1.0, "rate_until": 0.0})


def test_given_parameters_are_there_for_a_second_beginning(tiny_cache, tmp_path):
    """A step takes the memory of its state; a rewind to step 0 needs the parameters of `--init_from` once more."""
    run = trainer(tmp_path / "run", tiny_cache, None)
    run.initial_params = run.initial_state().params
    expected = jax.tree.map(np.asarray, run.initial_params)
    batch = run._place(next(run.data.batches(0)))
    run.train_step(run.initial_state(), batch)
    again = run.initial_state()
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, expected))


def test_a_rewound_run_is_one_that_never_saw_the_fault(tiny_cache, tmp_path, monkeypatch):
    """Bit for bit: what led to the spike leaves no trace but its event. The supervisor hears of it and has patience."""
    signs = []
    monkeypatch.setattr(lifeline, "sign", lambda limit=None, **news: signs.append({"limit": limit, **news}))
    final = trainer(tmp_path / "run", tiny_cache, "poisoned").run()
    event = overcome(tmp_path / "run", "poisoned")
    first = next(number for number, sign in enumerate(signs) if sign.get("step") == event["step"])
    assert signs[first]["phase"] == "productive" and signs[first]["limit"] == Supervision().hang_floor
    rewind = next(sign for sign in signs[first:] if sign["phase"] == "restart")
    assert rewind["step"] == event["step"] and rewind["limit"] == Supervision().patience
    before, after = json.loads((tmp_path / "run" / "goodput.json").read_text())["incarnations"]
    assert (before["last_step"], after["first_step"]) == (event["step"], event["to"])
    sound = trainer(tmp_path / "sound", tiny_cache, None)
    sound.watch.course = Course((tuple(event["skipped"]),))
    for ours, theirs in zip(jax.tree.leaves(final), jax.tree.leaves(sound.run()), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
    assert metrics(tmp_path / "run") == metrics(tmp_path / "sound")
    shown = Experiment.open(str(tmp_path / "run")).inspect(event=1, rows=1)
    assert shown.startswith('{"event": 1') and f"batch {AT} of plan" in shown


def test_killed_in_a_rewind_it_ends_the_same(tiny_cache, tmp_path):
    in_a_process(tmp_path / "whole", tiny_cache, "poisoned")
    in_a_process(tmp_path / "killed", tiny_cache, "poisoned", killed="removed")
    overcome(tmp_path / "killed", "poisoned")
    assert_same_end(tmp_path / "killed", tmp_path / "whole")

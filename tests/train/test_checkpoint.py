"""Saving and restoring: what is kept, where, what a failing disk does, and what is refused."""

import json
import os
import time

import jax
import numpy as np
import pytest
from checkpoint_damage import layout, same, state_at, write_checkpoints
from full_disk import OnFullDisk

from pretrain.core.errors import RunError, UserError
from pretrain.core.storage import Path
from pretrain.train.checkpoint import Checkpointer
from pretrain.train.checkpoint_folder import CheckpointFolder
from pretrain.train.checkpoint_rules import Checkpointing, kept_steps
from pretrain.train.events import EventLog, read_events
from pretrain.train.manifest import Damaged, Manifest, Unfinished, verify


def train(folder, config, steps, *, metrics=lambda step: {}, wanted=None, start=0, events=None):
    """Goes through steps as the training loop does; returns those for which a save was due."""
    due = []
    with Checkpointer(folder, config, events=events) as checkpointer:
        if wanted is not None:
            checkpointer.wanted = wanted
        for step in range(start + 1, steps + 1):
            if checkpointer.due(step) or step == steps:
                checkpointer.save(step, state_at(step), {"step": step}, metrics(step), final=step == steps)
                checkpointer.wait()
                due.append(step)
    return due


def test_what_is_saved_comes_back_with_its_position(tmp_path):
    assert train(tmp_path / "c", Checkpointing(every=4), 10) == [4, 8, 10]
    with Checkpointer(tmp_path / "c") as checkpointer:
        assert checkpointer.steps() == [4, 8, 10]
        assert checkpointer.latest_step() == 10
        for step in (None, 4):
            state, position = checkpointer.restore(*layout(state_at(0)), step)
            assert same(state, step or 10) and position == {"step": step or 10}
        params = checkpointer.restore_params(*(tree.params for tree in layout(state_at(0))), 8)
    assert np.array_equal(params["embedding"], state_at(8).params["embedding"])


def test_rules_of_retention(tmp_path):
    rules = Checkpointing(every=1, keep=2, keep_every=5, keep_best=2, best_metric="loss", pin=(3,))
    losses = dict(enumerate([9, 4, 8, 7, 2, 6, 5, 9, 8, 7, 6, 5], start=1))
    train(tmp_path / "c", rules, 12, metrics=lambda step: {"loss": losses[step]}, wanted=lambda steps: [7])
    folder = CheckpointFolder(tmp_path / "c")
    assert folder.steps() == [2, 3, 5, 7, 10, 11, 12]
    assert folder.pinned() == {3: "Checkpointing.pin"}


def test_reasons_for_keeping():
    metrics = {step: {"loss": loss} for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0))} | {4: {}, 5: {"loss": None}}
    rules = Checkpointing(keep=1, keep_best=1, best_metric="loss", best_mode="max", keep_every=2)
    assert kept_steps(metrics, rules, pinned=[3]) == {
        1: ["best"], 2: ["multiple of 2"], 3: ["pinned"], 4: ["multiple of 2"], 5: ["newest"],
    }  # fmt: skip


def test_the_newest_at_a_multiple_and_removal_for_a_rewind(tmp_path):
    train(tmp_path / "c", Checkpointing(every=5, keep=10), 30)
    with Checkpointer(tmp_path / "c") as checkpointer:
        assert checkpointer.newest(at_most=29, multiple_of=10) == 20
        assert checkpointer.newest(at_most=4) is None
        checkpointer.remove_newer_than(20)
        assert checkpointer.latest_step() == 20
        assert checkpointer.steps() == [5, 10, 15, 20]


def test_continuous_saves_whenever_the_last_is_done(tmp_path):
    assert train(tmp_path / "c", Checkpointing(every=100, continuous=True), 6) == [1, 2, 3, 4, 5, 6]
    assert train(tmp_path / "d", Checkpointing(every=100), 6) == [6]


def test_local_tier_saves_often_and_the_newest_of_both_is_taken(tmp_path):
    rules = Checkpointing(every=10, local_tier=str(tmp_path / "fast"), local_every=3, local_keep=2)
    assert train(tmp_path / "c", rules, 14) == [3, 6, 9, 10, 12, 14]
    assert CheckpointFolder(tmp_path / "c").steps() == [10, 14]
    (fast,) = (tmp_path / "fast").iterdir()
    assert CheckpointFolder(fast).steps() == [9, 12]
    CheckpointFolder(tmp_path / "c").remove(14)
    with Checkpointer(tmp_path / "c", rules) as checkpointer:
        assert checkpointer.latest_step() == 12
        assert same(checkpointer.restore(*layout(state_at(0)))[0], 12)
    (fast / "12" / "state" / "_METADATA").write_text("{}")
    with Checkpointer(tmp_path / "c", rules) as checkpointer:
        assert checkpointer.latest_step() == 10
        assert same(checkpointer.restore(*layout(state_at(0)))[0], 10)


def test_a_new_run_in_the_same_place_does_not_see_the_old_ones_local_tier(tmp_path):
    rules = Checkpointing(every=10, local_tier=str(tmp_path / "fast"), local_every=3)
    train(tmp_path / "c", rules, 9)
    Path(tmp_path / "c").rmtree()
    with Checkpointer(tmp_path / "c", rules) as checkpointer:
        assert checkpointer.latest_step() is None


def test_a_full_disk_is_an_alarm_and_the_save_is_made_later(tmp_path, capsys):
    rules = Checkpointing(every=2, patience=0.05)
    with Checkpointer(tmp_path / "c", rules, events=EventLog(tmp_path)) as checkpointer:
        with OnFullDisk():
            assert checkpointer.due(2)
            checkpointer.save(2, state_at(2), {})
            checkpointer.wait()
        assert not checkpointer.due(3), "not before the time for another try"
        time.sleep(0.06)
        assert checkpointer.due(3)
        checkpointer.save(3, state_at(3), {})
        checkpointer.wait()
        assert checkpointer.steps() == [3]
        assert not checkpointer.due(5), "nothing is owed any more"
    told = capsys.readouterr().err
    assert told.count("ALARM: step 2 is not saved: ") == 1 and "Traceback" not in told
    assert [(event["kind"], event["step"]) for event in read_events(tmp_path)] == [("checkpoint_alarm", 2)]


def test_a_folder_that_cannot_be_written_is_an_alarm_and_ends_only_the_last_save(tmp_path, capsys):
    with Checkpointer(tmp_path / "c", Checkpointing(every=1, patience=0.05)) as checkpointer:
        (tmp_path / "c").write_text("a file where the folder should be")
        checkpointer.save(1, state_at(1), {})
        checkpointer.wait()
        with pytest.raises(RunError, match=r"step 2 could not be saved to .*/c: "):
            checkpointer.save(2, state_at(2), {}, final=True)
    assert "ALARM: step 1 is not saved" in capsys.readouterr().err
    with pytest.raises(UserError, match="is a file, and should be a folder"):
        Checkpointer(tmp_path / "c")


def test_slow_storage_does_not_hold_training_up(tmp_path, monkeypatch, capsys):
    from pretrain.train import saver

    slow = lambda *arguments: time.sleep(1.0) or seal(*arguments)  # noqa: E731
    seal = saver.seal
    monkeypatch.setattr(saver, "seal", slow)
    with Checkpointer(tmp_path / "c", Checkpointing(every=1, patience=0.1)) as checkpointer:
        checkpointer.save(1, state_at(1), {})
        started = time.monotonic()
        checkpointer.save(2, state_at(2), {})
        checkpointer.save(3, state_at(3), {})
        assert time.monotonic() - started < 0.9, "it waits once, for its patience"
        monkeypatch.setattr(saver, "seal", seal)
        checkpointer.save(4, state_at(4), {}, final=True)
        assert checkpointer.steps() == [1, 4]
    assert capsys.readouterr().err.count("the save before it is still being written") == 2


def test_nothing_is_moved_or_removed_by_a_reader(tmp_path, capsys):
    write_checkpoints(tmp_path / "c")
    (tmp_path / "c" / "30" / "state" / "_METADATA").write_text("{}")
    before = sorted(path for path in (tmp_path / "c").rglob("*"))
    with Checkpointer(tmp_path / "c", read_only=True) as checkpointer:
        assert checkpointer.latest_step() == 20
        with pytest.raises(RunError, match=r"the checkpoint of step 30 in .* is damaged: choose another step"):
            checkpointer.restore_params(*(tree.params for tree in layout(state_at(0))), 30)
        with pytest.raises(UserError, match="no checkpoint of step 40"):
            checkpointer.restore_params(*(tree.params for tree in layout(state_at(0))), 40)
    assert sorted(path for path in (tmp_path / "c").rglob("*")) == before
    assert "step 30 is damaged" in capsys.readouterr().err


def test_all_damaged_is_an_error_now_and_at_the_next_start(tmp_path):
    write_checkpoints(tmp_path / "c", steps=(10,))
    (tmp_path / "c" / "10" / "state" / "_METADATA").write_text("{}")
    for _ in range(2):
        with Checkpointer(tmp_path / "c") as checkpointer, pytest.raises(RunError, match="is whole, and there were"):
            checkpointer.latest_step()


def test_another_model_or_optimizer_is_refused_in_a_line(tmp_path):
    write_checkpoints(tmp_path / "c", steps=(10,))
    shapes, shardings = layout(state_at(0, width=200))
    with Checkpointer(tmp_path / "c") as checkpointer:
        with pytest.raises(UserError, match=r"another model: params/embedding is \(300, 8\) float32 there and \(200"):
            checkpointer.restore(shapes, shardings)
        with pytest.raises(UserError, match=r"another model: params/embedding is \(300, 8\) there and \(200, 8\) here"):
            checkpointer.restore_params(shapes.params, shardings.params)
        shapes, shardings = layout(state_at(0))
        more = jax.tree.map(lambda x: x, shapes)
        object.__setattr__(more, "opt_state", (*shapes.opt_state, {"extra": shapes.rng}))
        with pytest.raises(UserError, match="another optimizer: opt_state/2/extra is missing there"):
            checkpointer.restore(more, shardings)


def test_a_manifest_says_what_was_changed(tmp_path):
    write_checkpoints(tmp_path / "c", steps=(10,))
    folder, file = Path(tmp_path / "c" / "10"), tmp_path / "c" / "10" / "manifest.json"
    text = file.read_text()
    manifest = Manifest.from_json(text)
    assert manifest.to_json() == text and manifest == verify(folder)
    assert manifest.metrics == {"loss": 0.1} and manifest.bytes > 1000
    value = json.loads(text)
    for change, reason in (
        ({"step": 11}, "was changed"), ({"format": 2}, "was changed"), ({"files": []}, "files is not of type dict"),
        ({"more": 1}, "does not have the fields"),
    ):  # fmt: skip
        file.write_text(json.dumps({**value, **change}))
        with pytest.raises(Damaged, match=reason):
            verify(folder)
    for nonsense in ("", "[]", "[" * 100_000, "\0", "{}", "null"):
        file.write_text(nonsense)
        with pytest.raises(Damaged, match=r"manifest\.json"):
            verify(folder)
    file.unlink()
    with pytest.raises(Unfinished):
        verify(folder)


def test_files_have_the_permissions_of_the_users_umask(tmp_path):
    before = os.umask(0o077)
    try:
        write_checkpoints(tmp_path / "c", steps=(10,))
    finally:
        os.umask(before)
    modes = {path.stat().st_mode & 0o077 for path in (tmp_path / "c").rglob("*")}
    assert modes == {0}

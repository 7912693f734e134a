"""Batches across restarts: nothing is lost to what was sent ahead, and a changed mixture is a new plan that is said."""

import itertools
import json

import numpy as np
import pytest
from toy_data import Plain, log_normal, write_cache

from pretrain.core.errors import UserError
from pretrain.data.loader import make_loader
from pretrain.data.mixing import MixtureConfig
from pretrain.data.training_data import TrainingData
from pretrain.train.pace import placed_ahead

OLD, NEW = MixtureConfig(weights={"a": 3, "b": 1}), MixtureConfig(weights={"a": 1, "b": 3})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache"), {"a": [log_normal(200, 30)], "b": [log_normal(200, 30, 1)]})


def training_data(cache, mixture=OLD, record=None, **options):
    def open_loader(resume):
        settings = {"split": "train", "batch_size": 4, "sequence_length": 64, "seed": 0, **options}
        return make_loader(cache, objective=Plain(), mixture=mixture, resume=resume, **settings)

    return TrainingData(open_loader, record)


def take(data: TrainingData, start: int, steps: int) -> list[np.ndarray]:
    return [batch["tokens"] for batch in itertools.islice(data.batches(start), steps)]


def test_the_same_mixture_goes_on_without_a_word(cache, capfd):
    data, again = training_data(cache), training_data(cache)
    loader, position = again.loader, json.loads(json.dumps(data.position(7)))
    again.resume(position)
    assert again.loader is loader and again.position(7) == position
    np.testing.assert_array_equal(take(again, 7, 3), take(data, 0, 10)[7:])
    assert capfd.readouterr().err == ""


def test_sources_of_the_rows(cache):
    data = training_data(cache)
    for step, batch in enumerate(itertools.islice(data.batches(0), 5)):
        assert data.sources(step) == ["ab"[row.max()] for row in batch["source_ids"]]


def test_another_mixture_begins_a_plan_that_is_said_and_kept(cache, tmp_path, capfd):
    old, record = training_data(cache), tmp_path / "data.json"
    changed = training_data(cache, NEW, record)
    changed.resume(old.position(40))
    said = capfd.readouterr().err
    assert "data: another mixture from step 40 on, by tokens: a 25 %, b 75 %" in said
    assert f"(plan {changed.loader.fingerprint} follows {old.loader.fingerprint})" in said
    take(changed, 40, 1)
    kept = json.loads(record.read_text())
    assert [(phase["row"], phase["shares"]["b"]) for phase in kept["phases"]] == [(0, 0.25), (160, 0.75)]
    assert kept["position"] == changed.position(40) and kept["fingerprint"] == changed.loader.fingerprint

    restarted = training_data(cache, NEW)  # a later restart with the same mixture: the same two phases, nothing to say
    restarted.resume(changed.position(55))
    assert restarted.position(60) == changed.position(60) and capfd.readouterr().err == ""
    np.testing.assert_array_equal(take(restarted, 38, 5), take(changed, 38, 5))
    np.testing.assert_array_equal(take(restarted, 38, 2), take(old, 38, 2))


def test_other_data_are_refused(cache):
    position = training_data(cache).position(12)
    for options in ({"seed": 1}, {"batch_size": 8}, {"sequence_length": 32}):
        with pytest.raises(UserError, match=r"position of step 12 belongs to other data .*another --workdir"):
            training_data(cache, **options).resume(position)
    with pytest.raises(UserError, match="other data"):
        training_data(cache, MixtureConfig(weights={"a": 3, "b": 1}, stop="all")).resume(position)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_batches_sent_ahead_are_bounded_and_in_order(ahead):
    sent = []
    batches = placed_ahead(iter(range(12)), lambda batch: sent.append(batch) or -batch, ahead)
    for step, batch in enumerate(batches):
        assert batch == -step
        assert sent == list(range(min(step + 1 + ahead, 12)))
    assert step == 11 and list(placed_ahead([], sent.append, ahead)) == []


def test_an_error_of_the_loader_reaches_the_step_that_needs_it():
    def broken():
        yield 0
        raise UserError("the data is gone")

    with pytest.raises(UserError, match="gone"):
        list(placed_ahead(broken(), lambda batch: batch, 2))

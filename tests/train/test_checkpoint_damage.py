"""A short form of the damage to checkpoints that `make faults` does 300 times: every kind twice."""

import pytest
from checkpoint_damage import KINDS, damage_and_restore, write_checkpoints


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_checkpoints(tmp_path_factory.mktemp("damage") / "checkpoints")


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=[kind.__name__[1:] for kind in KINDS])
def test_damage_is_found_and_the_newest_whole_checkpoint_taken(kind, original, tmp_path):
    for seed in (kind, kind + len(KINDS)):
        damage_and_restore(original, tmp_path / "run", seed)


def test_the_trial_sees_a_checkpoint_that_should_not_have_been_taken(original, tmp_path, monkeypatch):
    monkeypatch.setattr("pretrain.train.checkpoint_folder.verify", lambda folder: None)
    with pytest.raises(AssertionError):
        damage_and_restore(original, tmp_path / "run", 0)

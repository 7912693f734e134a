"""What the loader tells an objective beside the text: the step of each row, and the weights of sources."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
from toy_data import Plain, log_normal, write_cache

from pretrain.core.errors import UserError
from pretrain.data.loader import make_loader

OPTIONS = {"split": "train", "batch_size": 4, "sequence_length": 64, "seed": 0}


@dataclasses.dataclass(frozen=True)
class Scheduled(Plain):
    """Wants to know the step."""

    reads_steps = True


@dataclasses.dataclass(frozen=True)
class Weighted(Plain):
    """Weighs sources."""

    source_weights: Mapping | None = None


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    sources = {"books": [log_normal(300, 40)], "web": [log_normal(300, 40, seed=1)]}
    return write_cache(tmp_path_factory.mktemp("cache"), sources)


def test_rows_say_their_step_if_asked(cache):
    loader = make_loader(cache, objective=Scheduled(), **OPTIONS)
    for step in (0, 1, 17, 40):
        assert (loader.batch(step)["steps"] == step).all()
    halves = [make_loader(cache, objective=Scheduled(), process_index=i, process_count=2, **OPTIONS) for i in range(2)]
    assert all((half.batch(5)["steps"] == 5).all() for half in halves)
    assert "steps" not in make_loader(cache, objective=Plain(), **OPTIONS).batch(0)


def test_sources_weigh_as_the_objective_says(cache):
    loader = make_loader(cache, objective=Weighted({"web": 0.25}), **OPTIONS)
    expected, seen = np.array([1.0, 0.25], np.float32), set()
    for step in range(10):
        batch = loader.batch(step)
        np.testing.assert_array_equal(batch["source_weights"], expected[batch["source_ids"]])
        seen |= set(batch["source_ids"][:, 0].tolist())
    assert seen == {0, 1}
    assert "source_weights" not in make_loader(cache, objective=Weighted(), **OPTIONS).batch(0)


def test_rows_past_the_end_have_a_weight(cache):
    loader = make_loader(cache, objective=Weighted({"web": 0.25}), epochs=1, **OPTIONS)
    batch = loader.batch(loader.num_batches - 1)
    assert (batch["source_weights"][batch["source_ids"] < 0] == 1).all()


def test_an_unknown_source_is_refused(cache):
    with pytest.raises(UserError, match="the cache has no source news"):
        make_loader(cache, objective=Weighted({"news": 2.0}), **OPTIONS)

"""Mixing: the shares that were asked for, at every moment, from any position."""

import gin
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from toy_data import Plain, log_normal

from pretrain.core.errors import UserError
from pretrain.data.lengths import Lengths
from pretrain.data.mixing import MixtureConfig, Phase
from pretrain.data.plan import SourcePlan
from pretrain.data.stream import Stream

SIZES = {"a": {"tokens": 800.0, "examples": 10.0}, "b": {"tokens": 200.0, "examples": 30.0}}


def make_plans(counts: dict[str, int], mean: float = 30, capacity: int = 64, window_rows: int = 8, seed: int = 0):
    lengths = Lengths(Plain(), capacity)
    return {
        name: SourcePlan(
            name, log_normal(count, mean, number)[:, None], [0, count], lengths, seed, window_rows=window_rows
        )
        for number, (name, count) in enumerate(counts.items())
    }


PLANS = make_plans({"a": 300, "b": 77, "c": 5})


def rows_of(stream: Stream, source: int, rows: int) -> np.ndarray:
    sources, found = stream.rows(0, rows)
    return found[sources == source]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.sampled_from(["tokens", "examples"]),
    st.integers(0, 9_000),
)
def test_any_range_is_a_part_of_one_order(weights, by, start):
    shares = {name: weight / sum(weights) for name, weight in zip("abc", weights, strict=True)}
    stream = Stream(PLANS, [Phase(0, by, shares)])
    sources, rows = stream.rows(0, 10_000)
    for number in range(3):  # each source's rows come in turn, none left out
        np.testing.assert_array_equal(rows[sources == number], np.arange((sources == number).sum()))
    fresh = Stream(PLANS, [Phase(0, by, shares)]).rows(start, start + 37)
    np.testing.assert_array_equal(fresh[0], sources[start : start + 37])
    np.testing.assert_array_equal(fresh[1], rows[start : start + 37])


def test_the_order_is_that_of_the_times_at_which_rows_are_passed():
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    sources, rows = Stream(PLANS, [Phase(0, "tokens", shares)]).rows(0, 1500)
    times = []
    for number, name in enumerate("abc"):
        plan, middle = PLANS[name], []
        for epoch in range(1000):
            order, before = plan.epoch(epoch), epoch * plan.cost["tokens"]
            for window in order.windows:
                pieces = plan.window(epoch, window).pieces
                cost, count = pieces.packed.sum(), plan.window_rows[window]
                middle += [before + cost * (row + 0.5) / count for row in range(count)]
                before += cost
            if len(middle) > 1500:
                break
        times += [(middle[row] / shares[name], number, row) for row in range(1500)]
    expected = sorted(times)[:1500]
    np.testing.assert_array_equal(sources, [source for _, source, _ in expected])
    np.testing.assert_array_equal(rows, [row for _, _, row in expected])


def counted(stream: Stream, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and examples (by their first piece) of each source in the first rows."""
    tokens, examples = np.zeros(len(stream.plans), int), np.zeros(len(stream.plans), int)
    sources, source_rows = stream.rows(0, rows)
    for number, plan in enumerate(stream.plans):
        for epoch, window, _, within in plan.locate(source_rows[sources == number]):
            found = plan.window(epoch, window)
            for row in within:
                pieces = found.pieces.take(np.arange(found.starts[row], found.starts[row + 1]))
                tokens[number] += pieces.packed.sum()
                examples[number] += (pieces.offset == 0).sum()
    return tokens, examples


@pytest.mark.parametrize("by", ["tokens", "examples"])
def test_observed_rates_over_a_million_examples(by):
    plans = make_plans({"a": 200_000, "b": 30_000, "c": 2_000}, mean=60, capacity=2048, window_rows=256)
    shares = {"a": 0.6, "b": 0.3, "c": 0.1}
    stream = Stream(plans, [Phase(0, by, shares)])
    tokens, examples = counted(stream, 36_000)
    assert examples.sum() > 1_000_000
    observed, expected = (examples if by == "examples" else tokens), np.array([0.6, 0.3, 0.1])
    expected = expected * observed.sum()
    # Chi-squared in units of examples, 2 degrees of freedom: 5.99 is the 5 % point.
    per_example = observed.sum() / examples.sum()
    assert ((observed - expected) ** 2 / (expected * per_example)).sum() < 5.99


def test_by_size_every_source_is_read_once_in_one_epoch():
    phases = MixtureConfig().phases({name: plan.cost for name, plan in PLANS.items()}, None)
    stream = Stream(PLANS, phases)
    total = sum(plan.rows for plan in PLANS.values())
    sources, rows = stream.rows(0, total)
    for number, name in enumerate("abc"):
        assert sorted(rows[sources == number]) == list(range(PLANS[name].rows))
    assert stream.end("first", {}) == stream.end("all", {}) == total
    assert stream.end("never", {}) is None


def test_epochs_are_exact():
    epochs = {"a": 1, "b": 3, "c": 10}
    mixture = MixtureConfig(epochs=epochs, stop="all")
    stream = Stream(PLANS, mixture.phases({name: plan.cost for name, plan in PLANS.items()}, None))
    end = stream.end("all", epochs)
    assert end == sum(PLANS[name].rows * times for name, times in epochs.items())
    assert [len(rows_of(stream, number, end)) for number in range(3)] == [PLANS[n].rows * t for n, t in epochs.items()]


def test_stop_at_the_first_or_the_last_source():
    stream = Stream(PLANS, [Phase(0, "tokens", {"a": 0.5, "b": 0.5})])
    first, last = stream.end("first", {}), stream.end("all", {})
    assert len(rows_of(stream, 1, first)) == PLANS["b"].rows and len(rows_of(stream, 0, first)) < PLANS["a"].rows
    assert len(rows_of(stream, 1, first + 1)) == PLANS["b"].rows + 1  # the row that would begin b again
    assert len(rows_of(stream, 0, last)) == PLANS["a"].rows and len(rows_of(stream, 1, last)) > PLANS["b"].rows
    assert len(rows_of(stream, 0, last - 1)) == PLANS["a"].rows - 1


def test_phases_change_the_shares_and_repeat_nothing():
    phases = [
        Phase(0, "tokens", {"a": 0.9, "b": 0.1}),
        Phase(1000, "tokens", {"b": 0.2, "c": 0.8}),
        Phase(5000, "examples", {"a": 1.0}),
    ]
    stream = Stream(PLANS, phases)
    sources, rows = stream.rows(0, 9000)
    for number in range(3):
        np.testing.assert_array_equal(rows[sources == number], np.arange((sources == number).sum()))
    assert set(sources[:1000]) == {0, 1} and set(sources[1000:5000]) == {1, 2} and set(sources[5000:]) == {0}
    assert abs((sources[1000:5000] == 2).mean() - 0.8) < 0.05
    late = Stream(PLANS, phases).rows(4990, 5010)
    np.testing.assert_array_equal(late[0], sources[4990:5010])


def test_a_phase_that_is_never_left_cannot_stop():
    stream = Stream(PLANS, [Phase(0, "tokens", {"a": 0.5, "b": 0.5}), Phase(3, "tokens", {"b": 1.0})])
    with pytest.raises(UserError, match="never reached"):
        stream.end("all", {})
    assert stream.end("first", {}) is not None


def test_shares():
    def shares(**settings):
        return [phase.shares for phase in MixtureConfig(**settings).phases(SIZES, 100)]

    assert shares() == [{"a": 0.8, "b": 0.2}]
    assert shares(by="examples") == [{"a": 0.25, "b": 0.75}]
    assert shares(temperature=2.0)[0] == pytest.approx({"a": 2 / 3, "b": 1 / 3})
    assert shares(weights={"b": 3, "a": 1}) == [{"a": 0.25, "b": 0.75}]
    assert shares(weights={"a": 2, "b": 0}) == [{"a": 1.0}]
    assert shares(epochs={"a": 1, "b": 4}) == [{"a": 0.5, "b": 0.5}]
    assert shares(weights={"a": 1}, schedule=((0.9, {"b": 1}),)) == [{"a": 1.0}, {"b": 1.0}]


def test_a_schedule_begins_at_its_fraction():
    mixture = MixtureConfig(schedule=((0.5, {"b": 1}), (0.9, {"a": 1})))
    assert [phase.row for phase in mixture.phases(SIZES, 1000)] == [0, 500, 900]
    with pytest.raises(UserError, match="needs the number of training steps"):
        mixture.phases(SIZES, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": {"a": -1.0, "b": 2.0}}, "a has weight -1.0"),
        ({"weights": {"a": float("nan")}}, "must be a dictionary of a string in quotes to a number"),
        ({"weights": {"a": 0, "b": 0}}, "every weight is 0"),
        ({"epochs": {"a": -2}}, "MixtureConfig.epochs: a has weight -2"),
        ({"schedule": ((0.5, {"a": -1}),)}, "MixtureConfig.schedule: a has weight -1"),
        ({"schedule": ((0.9, {"a": 1}), (0.5, {"a": 1}))}, "give rising fractions"),
        ({"schedule": ((1.5, {"a": 1}),)}, "give rising fractions"),
        ({"schedule": ((0.5,),)}, "pairs of a fraction"),
        ({"schedule": (0.5, {"a": 1})}, "MixtureConfig.schedule must be a list"),
        ({"weights": {"a": 1}, "epochs": {"a": 1}}, "not both"),
        ({"by": "words"}, "'tokens' or 'examples'"),
        ({"temperature": 0}, "must be positive"),
        ({"stop": "now"}, "'never', 'first' or 'all'"),
    ],
)
def test_mistakes_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MixtureConfig(**settings)


def test_whole_epochs_are_not_touched_by_what_gin_binds():
    with gin.unlock_config():
        gin.bind_parameter("MixtureConfig.weights", {"a": 1})
        gin.bind_parameter("MixtureConfig.by", "examples")
    try:
        assert MixtureConfig().weights == {"a": 1}
        assert MixtureConfig.whole_epochs({"a": 2, "b": 2}).phases(SIZES, None) == [
            Phase(0, "tokens", {"a": 0.8, "b": 0.2})
        ]
    finally:
        gin.clear_config()


def test_unknown_sources_are_refused():
    for wrong in ({"weights": {"x": 1}}, {"epochs": {"x": 1}}, {"schedule": ((0.5, {"x": 1}),)}):
        with pytest.raises(UserError, match=r"no source x; the cache has a, b"):
            MixtureConfig(**wrong).phases(SIZES, 10)

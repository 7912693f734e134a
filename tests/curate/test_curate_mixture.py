"""The mixture plan: shares, epochs and warnings, against hand-made numbers and invariants."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.curate.mixture import MixturePlan, lines, mixture_plan, warnings

TOKENS = {"web": 900, "books": 90, "code": 10}


def seen(**settings) -> dict[str, int]:
    return {share.source: share.seen for share in mixture_plan(TOKENS, MixturePlan(**settings))}


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, {"web": 900, "books": 90, "code": 10}),
        ({"tokens": 2_000}, {"web": 1_800, "books": 180, "code": 20}),
        ({"upweight": {"books": 3}}, {"web": 900, "books": 270, "code": 10}),
        ({"tokens": 590, "upweight": {"books": 3}}, {"web": 450, "books": 135, "code": 5}),
        ({"epochs": {"code": 4}}, {"web": 900, "books": 90, "code": 40}),
        ({"tokens": 535, "epochs": {"code": 4}}, {"web": 450, "books": 45, "code": 40}),
        ({"tokens": 100, "weights": {"web": 1, "books": 3}}, {"web": 25, "books": 75, "code": 0}),
        ({"tokens": 99, "weights": {"web": 1}, "epochs": {"code": 6}}, {"web": 39, "books": 0, "code": 60}),
        ({"tokens": 430, "temperature": 2}, {"web": 300, "books": 95, "code": 32}),
        ({"epochs": {"web": 0, "books": 2, "code": 1}}, {"web": 0, "books": 180, "code": 10}),
    ],
)  # fmt: skip
def test_plans(settings, expected):
    found = seen(**settings)
    assert {source: pytest.approx(number, abs=4) for source, number in expected.items()} == found


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**12), min_size=1),
    st.integers(1, 10**13),
    st.floats(0.2, 5),
)
def test_shares_add_up_to_the_budget(tokens, budget, temperature):
    shares = mixture_plan(tokens, MixturePlan(tokens=budget, temperature=temperature))
    assert sum(share.share for share in shares) == pytest.approx(1)
    assert sum(share.seen for share in shares) == pytest.approx(budget, abs=len(shares))
    assert [share.source for share in shares] == sorted(tokens)
    for share in shares:
        assert share.epochs * share.tokens == pytest.approx(share.seen, abs=1)


@given(st.floats(1.01, 10))
def test_a_higher_temperature_gives_small_sources_more(temperature):
    natural, warm = (mixture_plan(TOKENS, MixturePlan(tokens=1000, temperature=t)) for t in (1.0, temperature))
    by_source = [{share.source: share.share for share in shares} for shares in (natural, warm)]
    assert by_source[1]["code"] > by_source[0]["code"]
    assert by_source[1]["web"] < by_source[0]["web"]


def test_more_than_four_epochs_warn():
    assert warnings(mixture_plan(TOKENS, MixturePlan(epochs={"books": 4}))) == []
    (warning,) = warnings(mixture_plan(TOKENS, MixturePlan(epochs={"books": 4.1})))
    assert warning.startswith("books will be seen 4.1 times")


def test_empty_sources_are_in_the_table_and_never_seen():
    shares = mixture_plan({"web": 10, "empty": 0}, MixturePlan(tokens=100))
    assert [(share.source, share.seen, share.epochs) for share in shares] == [("empty", 0, 0.0), ("web", 100, 10.0)]
    assert lines(shares)[1].split() == ["empty", "0", "0.0", "%", "0", "0.00"]
    assert mixture_plan({}, MixturePlan()) == []


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tokens": 0}, "tokens must be positive"),
        ({"temperature": -1}, "temperature must be positive"),
        ({"weights": {"web": -1}}, "weights: .'web'. must be 0 or more"),
        ({"weights": {"web": 1}, "upweight": {"web": 1}}, "weights or upweight"),
        ({"epochs": {"wbe": 1}}, "no source .'wbe'.; there are books, code, web"),
        ({"tokens": 10, "epochs": {"web": 2}}, "ask for 1,800 tokens"),
        ({"tokens": 10, "weights": {"web": 0}}, "the weights of all sources are 0"),
    ],
)
def test_impossible_plans(settings, message):
    with pytest.raises(UserError, match=message):
        mixture_plan(TOKENS, MixturePlan(**settings))

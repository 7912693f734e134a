"""The report's parts: escaping, numbers for people, and curves that tell the truth in few points."""

import html
from html.parser import HTMLParser

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from toy_run import metrics

from pretrain.report.markup import CONTROLS, Markup, bars, element, escape, table
from pretrain.report.plots import VARIABLES, Curve, plot, thinned
from pretrain.report.quantities import count, duration, percent, short, significant, size
from pretrain.report.run_sections import training_seconds


class Collector(HTMLParser):
    """All tags, attributes and texts of a piece of HTML."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.values, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.values += [value for _, value in attributes]

    def handle_data(self, data):
        self.text += data


def as_shown(text: str) -> str:
    return text.encode("utf-8", "replace").decode().translate(CONTROLS)


@given(st.text(st.characters(), max_size=60), st.text(st.characters(), max_size=60))
def test_any_text_comes_out_as_text(inside, value):
    page = element("p", inside, title=value)
    page.encode()
    read = Collector(page)
    assert read.tags == ["p"]
    assert read.values == [as_shown(value)]
    assert read.text == as_shown(inside)


def test_markup_is_not_escaped_twice():
    inner = element("b", "a < b")
    assert element("p", inner, " & ", class_="x") == '<p class="x"><b>a &lt; b</b> &amp; </p>'
    assert isinstance(inner, Markup) and html.unescape(escape("<&>'\"")) == "<&>'\""


def test_table_tells_text_from_numbers_and_sets_the_sum_apart():
    made = table(["source", "documents"], [["a", "1"], ["<b>", "2"], ["all", "3"]], total=True)
    assert '<td class="label">&lt;b&gt;</td><td class="number">2</td>' in made
    assert '<tfoot><tr><td class="label">all</td><td class="number">3</td></tr></tfoot>' in made
    assert "<tfoot>" not in table(["source"], [["all"]], total=True)


def test_bars_are_in_proportion():
    made = bars([("model", 1.0, "1.0"), ("gzip", 4.0, "4.0")], strong="model")
    assert "width:25.00%" in made and "width:100.00%" in made
    assert made.count('class="strong"') == 2
    assert "width:0.00%" in bars([("nothing", 0.0, "0")])


@pytest.mark.parametrize(
    ("function", "value", "shown"),
    [
        (count, 1234567, "1,234,567"),
        (count, 0, "0"),
        (short, 1286, "1,286"),
        (short, 163_840, "164 k"),
        (short, 15_728_640_000, "15.7 G"),
        (short, 2.5e12, "2.50 T"),
        (short, 0.25, "0.250"),
        (size, 0, "0 bytes"),
        (size, 999, "999 bytes"),
        (size, 1_000, "1 kB"),
        (size, 13_524_164, "13.5 MB"),
        (size, 5e15, "5,000 TB"),
        (significant, 2.2896612, "2.29"),
        (significant, 333.668, "334"),
        (significant, 0.000749, "0.000749"),
        (significant, 1e-7, "1.00e-07"),
        (significant, 123_456_789.5, "1.23e+08"),
        (significant, float("nan"), "nan"),
        (significant, float("inf"), "inf"),
        (duration, 5.25, "5.25 s"),
        (duration, 59.0, "59 s"),
        (duration, 104, "2 min"),
        (duration, 3_725, "1 h 2 min"),
        (duration, 86_400 * 3 + 7_200, "3 d 2 h"),
        (duration, 3_600, "1 h"),
    ],
)
def test_numbers_for_people(function, value, shown):
    assert function(value) == shown


@pytest.mark.parametrize(
    ("part", "whole", "shown"),
    [
        (0, 5, "0 %"),
        (5, 5, "100 %"),
        (1, 8, "12.5 %"),
        (1, 10_000, "< 0.1 %"),
        (9_999, 10_000, "> 99.9 %"),
        (0, 0, "\u2013"),
    ],
)
def test_shares_never_round_to_all_or_nothing(part, whole, shown):
    assert percent(part, whole) == shown


@given(
    st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(np.nan), st.just(np.inf)), min_size=1, max_size=50),
    st.integers(1, 20),
)
def test_thinned_curves_keep_extremes_and_order(values, points):
    y = np.array(values)
    x, low, mean, high = thinned(np.arange(len(y), dtype=float), y, points)
    assert len(x) == min(len(y), points)
    assert (np.diff(x) > 0).all() and x[-1] == len(y) - 1
    finite = y[np.isfinite(y)]
    if finite.size:
        assert np.nanmin(low) == finite.min() and np.nanmax(high) == finite.max()
        there = np.isfinite(mean)
        tolerance = 1e-9 * (1 + np.abs(mean[there]))
        assert (low[there] <= mean[there] + tolerance).all() and (mean[there] <= high[there] + tolerance).all()
    else:
        assert np.isnan(mean).all()


def test_a_short_curve_is_not_thinned():
    x, y = np.arange(5.0), np.array([3.0, np.nan, 1.0, 2.0, 5.0])
    for kept in thinned(x, y)[1:]:
        np.testing.assert_array_equal(kept, y)


def test_plots_are_the_same_every_time_and_in_the_pages_colours():
    def draw():
        x = np.arange(1.0, 2_000.0)
        curves = [Curve("training", x, 1 / x), Curve("validation", x[::99], 2 / x[::99], dots=True)]
        return plot("Loss", curves, "tokens", x_unit="tokens")

    made = draw()
    assert made == draw()
    assert not [colour for colour in VARIABLES if colour in made]
    assert set(VARIABLES.values()) <= {f"var(--{part.split(')')[0]})" for part in made.split("var(--")[1:]}
    assert ">validation<" in made and "<title>Loss by tokens</title>" in made
    assert "<metadata" not in made and "<style" not in made and "font-family" not in made


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "y", [[1.0], [np.nan, 2.0, np.nan], [np.nan, np.nan], [0.0, 0.0, 0.0], [1e-9, 1e12, 5.0], [1.0, 1.0, 1.0]]
)
def test_plots_of_odd_numbers(y, log):
    made = plot("Odd", [Curve("y", np.arange(len(y), dtype=float), np.array(y))], "step", log=log)
    assert made.startswith("<figure>") and made.endswith("</figure>")


def test_small_numbers_keep_their_digits_on_the_axis():
    x = np.arange(5.0)
    assert ">0.0004<" in plot("Learning rate", [Curve("rate", x, x * 1e-4)], "tokens")


def test_time_is_tokens_over_speed_whatever_was_logged():
    rows = metrics(4)
    rows[1]["seconds"] = 0.1  # the clock was started anew by a checkpoint within the interval
    np.testing.assert_allclose(training_seconds(rows), [5.0, 10.0, 15.0, 20.0])

"""The fitter finds the law behind points: exactly without noise, and with honest intervals with it."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pretrain.core.errors import UserError
from pretrain.main import main
from pretrain.plan.fit import NAMES, Coordinates, fit_by_projection, fit_law, held_out_error, huber, refine
from pretrain.plan.intervals import Resampled, expanded_percentiles, smoothed_errors
from pretrain.plan.laws import ParametricLaw
from pretrain.plan.points import Points, make_points, read_points
from pretrain.plan.valleys import fit_valleys

LAW = ParametricLaw(1.8, 480.0, 2000.0, 0.35, 0.36)


def grid(
    law: ParametricLaw = LAW, noise: float = 0.0, seed: int = 0, sizes: int = 7, budgets: int = 5, span=(0.2, 5.0)
) -> Points:
    """Runs about each budget's best size."""
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    best = np.array([law.optimum(c).params for c in flops])
    params = best * np.tile(np.geomspace(*span, sizes), budgets)
    tokens = flops / (6 * params)
    errors = np.random.default_rng(seed).normal(0, noise, len(params))
    return make_points(params, law.loss(params, tokens) * np.exp(errors), tokens=tokens)


@pytest.mark.parametrize(
    "law", [LAW, ParametricLaw(0.5, 30.0, 90.0, 0.2, 0.45), ParametricLaw(3.0, 5e3, 2e4, 0.5, 0.55)], ids=str
)
def test_exact_points_give_back_their_law(law):
    points = grid(law)
    fit = fit_law(points, resamples=0)
    for name in NAMES:
        assert getattr(fit.law, name) == pytest.approx(getattr(law, name), rel=1e-6), name
        assert getattr(fit_by_projection(points), name) == pytest.approx(getattr(law, name), rel=1e-6), name
    assert fit.objective < 1e-15
    assert held_out_error(points) < 1e-6


def test_an_outlier_moves_the_robust_fit_little():
    points = grid(noise=0.001)
    points.loss[3] *= 1.5
    fit = fit_law(points, resamples=0)
    assert abs(fit.law.alpha - LAW.alpha) < 0.03
    assert abs(fit.residuals[3] - np.log(1.5)) < 0.02
    assert abs(fit_by_projection(points).alpha - LAW.alpha) > abs(fit.law.alpha - LAW.alpha)


def test_intervals_hold_the_truth_and_shrink_with_noise():
    wide, narrow = (fit_law(grid(noise=noise, seed=1), resamples=200).intervals for noise in (0.004, 0.001))
    for name in (*NAMES, "N_opt_exponent", "D_opt_exponent"):
        truth = {"N_opt_exponent": LAW.params_exponent, "D_opt_exponent": LAW.tokens_exponent}.get(name)
        truth = getattr(LAW, name) if truth is None else truth
        assert wide[name][0] < truth < wide[name][1], name
        assert narrow[name][1] - narrow[name][0] < 0.6 * (wide[name][1] - wide[name][0])


def test_intervals_of_many_draws_hold_the_truth_as_often_as_they_say():
    """benchmarks/scaling_coverage.py does this with 500 draws; here too narrow or too wide ones would still show."""
    draws, held = 40, np.zeros(3)
    truth = {"E": LAW.E, "alpha": LAW.alpha, "N_opt_exponent": LAW.params_exponent}
    for seed in range(draws):
        intervals = fit_law(grid(noise=0.003, seed=seed, budgets=4, sizes=5), resamples=100, confidence=0.8).intervals
        held += [intervals[name][0] <= value <= intervals[name][1] for name, value in truth.items()]
    for count in held:
        assert stats.binomtest(int(count), draws, 0.8).pvalue > 1e-3, held


def test_a_fitted_law_says_how_sure_its_losses_are():
    law = fit_law(grid(noise=0.003, seed=3), resamples=200).law
    inside, far = law.loss_interval(1e9, 2e10), law.loss_interval(1e11, 2e12)
    assert inside[0] < LAW.loss(1e9, 2e10) < inside[1] and far[0] < LAW.loss(1e11, 2e12) < far[1]
    assert far[1] - far[0] > 3 * (inside[1] - inside[0])  # farther from the runs, less sure
    kept = Resampled.from_json(json.loads(json.dumps(law.resampled.to_json())))
    assert kept.freedom == 30 and kept.values.shape == (200, 5)
    again = dataclasses.replace(law, resampled=kept).loss_interval(1e11, 2e12)
    np.testing.assert_allclose(again, far, rtol=1e-4)
    assert fit_law(grid(), resamples=0).law.loss_interval(1e9, 2e10) is None


def test_errors_are_smoothed_and_as_wide_as_the_unknowns_call_for():
    residuals = np.r_[np.zeros(5), np.random.default_rng(0).normal(0, 1, 15)]  # as a fit of absolute values leaves them
    errors = smoothed_errors(residuals, 5, 2000, np.random.default_rng(1))
    assert errors.shape == (2000, 20) and len(np.unique(errors)) == errors.size
    assert np.mean(np.abs(errors) < 0.01) < 0.05 < np.mean(np.abs(residuals) < 0.01)
    assert errors.std() > residuals.std() * np.sqrt(20 / 15)
    assert not smoothed_errors(np.zeros(8), 5, 10, np.random.default_rng(1)).any()


@pytest.mark.parametrize(("freedom", "tails"), [(15, 2.131), (10**6, 1.960)])
def test_percentiles_are_expanded_to_those_of_students_t(freedom, tails):
    values = stats.norm.ppf(np.linspace(1e-5, 1 - 1e-5, 100_001))
    assert expanded_percentiles(values, 0.95, freedom) == pytest.approx((-tails, tails), abs=2e-3)


def test_the_same_seed_gives_the_same_intervals():
    points = grid(noise=0.003)
    first, again = (fit_law(points, resamples=20, seed=5).to_json() for _ in range(2))
    assert first == again
    assert set(first) == {*NAMES, "objective", "intervals", "N_opt_exponent", "D_opt_exponent"}


@given(st.floats(-3, 3), st.floats(1e-4, 2))
def test_huber_is_quadratic_then_linear_and_smooth(residual, delta):
    value = huber(np.array(residual), delta)
    assert value >= 0 and value <= residual**2 / 2 + 1e-12
    edge = huber(np.array([delta * (1 - 1e-9), delta * (1 + 1e-9)]), delta)
    assert edge[0] == pytest.approx(edge[1], rel=1e-6)


def test_centred_coordinates_predict_what_the_law_says():
    points = grid()
    x = Coordinates.of(points)
    theta = x.theta(np.array([[np.log(480.0), np.log(2000.0), np.log(1.8), 0.35, 0.36]]))
    np.testing.assert_allclose(x.values(theta)[0], [1.8, 480.0, 2000.0, 0.35, 0.36], rtol=1e-12)
    np.testing.assert_allclose(x.predict(theta)[0], np.log(LAW.loss(points.params, points.tokens)), rtol=1e-12)
    step = 1e-6 * np.eye(5)
    slopes = (x.predict(theta + step) - x.predict(theta - step)) / 2e-6
    np.testing.assert_allclose(x.jacobian(theta)[1][0].T, slopes, atol=1e-8)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_refining_never_makes_a_fit_worse(seed):
    rng = np.random.default_rng(seed)
    points = grid(noise=0.01, seed=seed)
    x, y = Coordinates.of(points), np.log(points.loss)
    wild = rng.normal(0, [[0.02], [0.02], [0.2], [0.2]], (4, 5))
    starts = x.theta(np.array([[6.0, 7.5, 0.6, 0.35, 0.36]]) + wild)

    def cost(theta):
        return huber(y - x.predict(theta), 1e-3).sum(1)

    refined = cost(refine(starts, x, y, 1e-3))
    assert (refined <= cost(starts) + 1e-12).all()
    assert refined[0] == pytest.approx(refined[1], rel=1e-6)  # near the best, starts come to one place


def test_parabolas_find_the_valleys():
    valleys = fit_valleys(grid())
    assert valleys.params_exponent == pytest.approx(LAW.params_exponent, abs=0.01)
    for valley in valleys.valleys:
        assert valley.params == pytest.approx(LAW.optimum(valley.flops).params, rel=0.1)
        assert valley.tokens * valley.params * 6 == pytest.approx(valley.flops)
    assert set(valleys.to_json()) == {"N_opt_exponent", "D_opt_exponent", "budgets"}


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (grid().where(np.arange(35) == 0), "1 point"),
        (grid(sizes=5, budgets=1), "5 point"),
        (make_points(np.full(9, 1e8), np.linspace(3, 2, 9), tokens=np.geomspace(1e9, 1e11, 9)), "value.* of params"),
    ],
)
def test_too_little_to_fit_says_what_is_missing(points, message):
    with pytest.raises(UserError, match=message):
        fit_law(points)


def test_parabolas_say_what_is_missing():
    with pytest.raises(UserError, match="2 budget"):
        fit_valleys(grid(budgets=2))
    with pytest.raises(UserError, match="train larger models"):
        fit_valleys(grid(span=(0.02, 0.2)))


def test_losses_that_do_not_fall_follow_no_law():
    points = grid()
    rising = make_points(points.params, points.params**0.1, tokens=points.tokens)
    with pytest.raises(UserError, match="no law of this form"):
        fit_law(rising, resamples=0)


def write(path, text):
    path.write_text(text)
    return str(path)


def test_files_of_both_kinds_are_read(tmp_path):
    by_tokens, none = read_points(
        write(tmp_path / "a.csv", "Params, Tokens,loss,note\n1e8,2e9,3.1,x\n\n2e8,4e9,2.9,\n")
    )
    by_flops, _ = read_points(write(tmp_path / "b.csv", "\ufeffflops,params,loss\n1.2e18,1e8,3.1\n4.8e18,2e8,2.9\n"))
    np.testing.assert_allclose(by_tokens.flops, by_flops.flops)
    np.testing.assert_allclose(by_tokens.tokens, by_flops.tokens)
    assert none is None
    kept, held = read_points(write(tmp_path / "c.csv", "params,tokens,loss,held_out\n1,2,3,0\n4,5,6,1\n"))
    assert len(kept) == 1 and held.loss.tolist() == [6.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params,tokens,loss\n1e8,2e9,nan\n", "line 2: loss must be a positive number, got nan"),
        ("params,tokens,loss\n1e8,0,3\n", "line 2: tokens must be a positive number, got 0"),
        ("params,tokens,loss\n1e8,abc,3\n", "line 2: tokens must be a number"),
        ("params,tokens,loss\n1e8,2e9\n", "line 2: loss must be a number"),
        ("params,loss\n1e8,3\n", "must name the columns"),
        ("params,tokens,loss\n", "holds no points"),
        ("", "must name the columns"),
    ],
)
def test_nonsense_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_points(write(tmp_path / "points.csv", text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_points(str(tmp_path / "none.csv"))


GRID_HEADER = "params,tokens,loss\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GRID_HEADER + "1e8,2e9,3.1\n", "1 point(s) given, but the law has 5 unknowns: give at least 6 runs"),
        (
            GRID_HEADER + "1e8,2e9,nan\n",
            "line 2: loss must be a positive number, got nan; leave out runs that diverged",
        ),
        (GRID_HEADER + "1e8,2e9,3.1\n2e8,0,3.1\n", "line 3: tokens must be a positive number, got 0"),
        (GRID_HEADER + "1e8,2e9,inf\n", "line 2: loss must be a positive number, got inf"),
        ("params,loss\n1e8,3\n", "must name the columns params,tokens,loss or flops,params,loss"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path, capsys, text, message):
    assert main(["scaling", "fit", "--input=" + write(tmp_path / "points.csv", text)]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1


def test_two_budgets_are_fitted_and_the_command_says_what_parabolas_miss(tmp_path, capsys):
    points = grid(budgets=2, noise=0.001)
    rows = "".join(f"{n},{d},{loss}\n" for n, d, loss in zip(points.params, points.tokens, points.loss, strict=True))
    path = write(tmp_path / "points.csv", GRID_HEADER + rows)
    assert main(["scaling", "fit", f"--input={path}", "--resamples=0"]) == 0
    out = capsys.readouterr().out
    assert "no parabolas: 2 budget(s) have 3 or more model sizes; parabolas need 3 such budgets" in out
    assert main(["scaling", "fit", f"--input={path}", "--resamples=0", "--exclude_highest=14"]) == 2
    assert "leaves none of 14 points" in capsys.readouterr().err

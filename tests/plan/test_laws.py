"""Published laws give their own published optima; derived optima are the best by search."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.plan.laws import LAWS, ParametricLaw, RepeatedDataLaw, inference_aware

# Hoffmann et al. 2022, table 3: parameters, FLOPs, tokens.
TABLE_3 = [
    (400e6, 1.92e19, 8.0e9), (1e9, 1.21e20, 20.2e9), (10e9, 1.23e22, 205.1e9), (67e9, 5.76e23, 1.5e12),
    (175e9, 3.85e24, 3.7e12), (280e9, 9.90e24, 5.9e12), (520e9, 3.43e25, 11.0e12), (1e12, 1.27e26, 21.2e12),
    (10e12, 1.30e28, 216.2e12),
]  # fmt: skip
GOPHER = 5.76e23
LAW = LAWS["besiroglu"]


@pytest.mark.parametrize(("params", "flops", "tokens"), TABLE_3)
def test_approach_1_gives_chinchillas_table(params, flops, tokens):
    optimum = LAWS["chinchilla_1"].optimum(flops)
    np.testing.assert_allclose([optimum.params, optimum.tokens], [params, tokens], rtol=0.05)


@pytest.mark.parametrize(("law", "params"), [("chinchilla_1", 67e9), ("chinchilla_2", 63e9), ("chinchilla_3", 40e9)])
def test_each_approach_gives_its_optimum_at_gophers_budget(law, params):
    np.testing.assert_allclose(LAWS[law].optimum(GOPHER).params, params, rtol=0.02)


def test_kaplan_wants_larger_models_and_the_correction_twenty_tokens_a_parameter():
    assert LAWS["kaplan"].optimum(GOPHER).params > 5 * LAWS["chinchilla_1"].optimum(GOPHER).params
    assert 15 < LAW.optimum(GOPHER).tokens_per_param < 25


@given(log_c=st.floats(15, 27), alpha=st.floats(0.2, 0.6), beta=st.floats(0.2, 0.6))
@settings(max_examples=50, deadline=None)
def test_the_closed_form_is_the_best_division(log_c, alpha, beta):
    law, flops = ParametricLaw(1.7, 400.0, 1500.0, alpha, beta), 10**log_c
    best = law.optimum(flops)
    np.testing.assert_allclose(best.flops, flops, rtol=1e-9)
    for factor in (0.9, 1.1):
        assert law.loss(best.params * factor, best.tokens / factor) > best.loss
    more = law.optimum(10 * flops)
    np.testing.assert_allclose(math.log10(more.params / best.params), law.params_exponent, rtol=1e-6)


@given(demand=st.floats(9, 15), log_c=st.floats(20, 25))
@settings(max_examples=30, deadline=None)
def test_a_used_model_is_smaller_at_the_same_loss_and_cheaper_over_its_life(demand, log_c):
    demand, trained = 10**demand, LAW.optimum(10**log_c)
    served = inference_aware(LAW, 10**log_c, demand)
    np.testing.assert_allclose(LAW.loss(served.params, served.tokens), trained.loss, rtol=1e-6)
    life = lambda run: run.flops + 2 * run.params * demand  # noqa: E731
    assert served.params <= trained.params * (1 + 1e-6) and life(served) <= life(trained) * (1 + 1e-9)


def test_without_use_nothing_changes():
    assert inference_aware(LAW, 1e22, 0.0).params == LAW.optimum(1e22).params


def test_repeated_tokens_are_worth_less_and_less():
    law = RepeatedDataLaw()
    values = [law.effective_tokens(epochs * 1e9, 1e9) for epochs in (0.5, 1, 2, 4, 16, 1000)]
    assert values[0] == 0.5e9 and values[1] == 1e9
    assert 0.9 * 4e9 < values[3] < 4e9  # four epochs are nearly as good as fresh data
    assert values[5] == pytest.approx(1e9 * (1 + 15.39))
    assert values == sorted(values)


def test_scarce_data_calls_for_a_smaller_model_and_plenty_changes_nothing():
    law = RepeatedDataLaw()
    free, scarce = law.law.optimum(1e22), law.optimum(1e22, 2e10)
    assert scarce.params < free.params and scarce.tokens > 2e10 and scarce.loss > free.loss
    np.testing.assert_allclose(law.optimum(1e22, 1e14).loss, free.loss, rtol=1e-3)


@pytest.mark.parametrize("flops", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_must_be_a_positive_number(flops):
    with pytest.raises(UserError, match="compute"):
        LAW.optimum(flops)

"""Plans, sizes, FLOPs and costs against published figures, and the commands that print them."""

import dataclasses
import json
from pathlib import Path

import gin
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIG, model

from pretrain.core import config as gin_config
from pretrain.core.errors import UserError
from pretrain.core.trees import size
from pretrain.main import main
from pretrain.models.config import TransformerConfig
from pretrain.models.flops import count_flops
from pretrain.plan.costs import CHIPS, Costs, parse_topology
from pretrain.plan.laws import ParametricLaw
from pretrain.plan.planner import make_plan, ratio_warning
from pretrain.plan.shapes import count_parameters, shape_for
from pretrain.train.hardware import PEAK_FLOPS

MODELS = Path(__file__).resolve().parents[2] / "gin_configs" / "models"
# Released checkpoints, exactly.
EXACT = {
    "gpt2": 124_439_808, "gpt2_medium": 354_823_168, "gpt2_large": 774_030_080, "gpt2_xl": 1_557_611_200,
    "llama2_7b": 6_738_415_616, "llama2_13b": 13_015_864_320, "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248, "llama3_70b": 70_553_706_496, "llama3_405b": 405_853_388_800,
}  # fmt: skip
# Brown et al. 2020, appendix D: parameters in millions, training FLOPs on 300B tokens.
GPT3 = {
    "gpt3_125m": (125, 2.25e20), "gpt3_350m": (356, 6.41e20), "gpt3_760m": (760, 1.37e21), "gpt3_1_3b": (1320, 2.38e21),
    "gpt3_2_7b": (2650, 4.77e21), "gpt3_6_7b": (6660, 1.20e22), "gpt3_13b": (12850, 2.31e22),
    "gpt3_175b": (174600, 3.14e23),
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_bindings():
    yield
    gin.clear_config()


def preset(name: str) -> TransformerConfig:
    gin_config.load([str(MODELS / f"{name}.gin")])
    return TransformerConfig()


@pytest.mark.parametrize(("name", "parameters"), EXACT.items())
def test_presets_have_their_checkpoints_sizes_exactly(name, parameters):
    config = preset(name)
    assert count_parameters(config).total == parameters
    assert size(model(config).shapes) == parameters


@pytest.mark.parametrize(("name", "published"), GPT3.items())
def test_gpt3_has_its_papers_sizes_and_flops(name, published):
    config = preset(name)
    millions, flops = published
    assert count_parameters(config).total / 1e6 == pytest.approx(millions, rel=0.01)
    assert 6 * count_parameters(config).total * 300e9 == pytest.approx(flops, rel=0.01)


def test_gpt3s_flops_from_its_shape():
    """All matrix products but attention scores, which the paper leaves out."""
    assert count_flops(preset("gpt3_175b"), 2048).training_without_scores * 300e9 == pytest.approx(3.14e23, rel=0.01)


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_bias": True, "norm": "layernorm"}, {"qk_norm": True, "tie_embeddings": False, "activation": "gelu"},
     {"positions": "learned", "use_bias": True, "kv_heads": 4, "head_dim": 10}],
)  # fmt: skip
def test_parameters_by_formula_are_those_allocated(changes):
    config = dataclasses.replace(CONFIG, **changes)
    assert count_parameters(config).total == sum(leaf.size for leaf in jax.tree.leaves(model(config).shapes))


@given(params=st.floats(6, 12))
@settings(max_examples=40, deadline=None)
def test_a_shape_comes_near_the_wanted_size(params):
    config = TransformerConfig(vocab_size=1024, embed_dim=256, num_heads=8, kv_heads=2, mlp_dim=688)
    shape = shape_for(10**params, config, 32 if params < 8 else 128)
    near = 0.5 if params < 8 else 0.25 if params < 9 else 0.1
    assert abs(count_parameters(shape).total / 10**params - 1) < near
    assert shape.num_heads % shape.num_kv_heads == 0


def test_a_budget_by_tokens_or_parameters_is_the_compute_whose_optimum_has_them():
    by_tokens, by_params = make_plan(tokens=1e12), make_plan(params=8e9)
    assert by_tokens.chosen.tokens == pytest.approx(1e12, rel=1e-6)
    assert by_params.chosen.params == pytest.approx(8e9, rel=1e-6)
    assert make_plan(params=8e9, tokens=15e12).flops == 6 * 8e9 * 15e12
    for wanted in (1e-3, 1e200):
        with pytest.raises(UserError, match="is the optimum of no budget"):
            make_plan(tokens=wanted)


def test_ones_own_law_is_followed():
    own = ParametricLaw(1.0, 100.0, 100.0, 0.3, 0.3)
    plan = make_plan(compute=1e20, own=own)
    assert plan.law == "own" and plan.chosen == own.optimum(1e20)
    assert plan.loss_interval is None  # nobody knows how sure it is
    published = make_plan(compute=1e20)
    assert published.loss_interval[0] <= published.chosen.loss <= published.loss_interval[1]


@pytest.mark.parametrize(
    "budget", [{}, {"compute": 1e20, "tokens": 1e9}, {"compute": 1e20, "law": "none"}, {"tokens": 0.0}]
)
def test_a_wrong_budget_is_refused(budget):
    with pytest.raises(UserError):
        make_plan(**budget)


def test_a_run_far_from_any_law_is_warned_about():
    assert "parameters on" in ratio_warning(1e9, 1e8)
    assert "larger model" in ratio_warning(1e6, 1e9)
    assert "seen 9.0 times" in ratio_warning(1e6, 1.8e7, unique=2e6)
    assert ratio_warning(1e9, 2e10) is None and ratio_warning(8e9, 2e12) is None


def test_time_and_cost_by_hand():
    topology = parse_topology("v5p:2x2x4")
    assert topology.chips == 16 and topology.peak_flops == 16 * 459e12
    hours = topology.hours(16 * 459e12 * 3600, 0.5)
    assert hours == pytest.approx(2)
    assert topology.flops(1.0, 0.5) == pytest.approx(12 * 16 * 459e12 * 3600)
    cost = Costs(price={"v5p": 3.0}, watts={"v5p": 500.0}, facility=1.2, kg_co2_per_kwh=0.5).of(topology, hours)
    assert cost == pytest.approx({"chip_hours": 32, "dollars": 96, "kwh": 19.2, "kg_co2": 9.6})


def test_every_chip_has_a_peak():
    assert all(name in PEAK_FLOPS for name, _, _ in CHIPS.values())


@pytest.mark.parametrize("text", ["v5p", "v5p:", "v9:4", "v5p:0x4", "4x4"])
def test_a_wrong_topology_is_refused(text):
    with pytest.raises(UserError, match="--topology"):
        parse_topology(text)


def test_plan_prints_a_table_and_json_and_writes_a_run_file(capsys, tmp_path):
    path = tmp_path / "planned.gin"
    flags = ["plan", "--topology=v5p:8x8x8", "--days=14", "--unique_tokens=1e11", "--inference_tokens=1e13"]
    assert main([*flags, f"--write={path}"]) == 0
    text = capsys.readouterr().out
    assert "besiroglu *" in text and "kg CO2" in text and "epochs" in text
    assert main([*flags, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["flops"] == pytest.approx(512 * 459e12 * 0.5 * 14 * 86400)
    assert plan["cost"]["days"] == pytest.approx(14)
    assert 6 * plan["params"] * plan["tokens"] == pytest.approx(plan["flops"])
    gin_config.load([str(path)])
    shape = TransformerConfig().with_vocab(plan["shape"]["vocab_size"])
    assert count_parameters(shape).total == plan["shape"]["parameters"]


def test_describe_prints_the_keys_that_scripts_read(capsys):
    assert main(["describe", f"--gin_file={MODELS / 'gpt2.gin'}", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["parameters"]["total"] == described["parameters"]["active"] == 124_439_808
    assert described["parameters"]["embedding"] == (50257 + 1024) * 768
    assert described["arrays"]["embedding"]["axes"] == ["vocab", "embed"]
    assert main(["describe", f"--gin_file={MODELS / 'gpt2.gin'}"]) == 0
    assert "124,439,808" in capsys.readouterr().out


def test_scaling_fit_prints_json_and_draws(capsys, tmp_path):
    law = ParametricLaw(1.8, 480.0, 2000.0, 0.35, 0.36)
    rows = ["params,tokens,loss,held_out"]
    for flops in np.geomspace(1e18, 1e21, 4):
        best = law.optimum(flops).params
        for factor in (0.3, 0.6, 1, 1.7, 3):
            tokens = flops / (6 * best * factor)
            rows.append(f"{best * factor},{tokens},{law.loss(best * factor, tokens)},0")
    rows.append(f"1e10,1e12,{1.01 * law.loss(1e10, 1e12)},1")
    (tmp_path / "points.csv").write_text("\n".join(rows))
    assert main(["scaling", "fit", f"--workdir={tmp_path}", "--resamples=20", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert {"E", "A", "B", "alpha", "beta", "objective", "intervals", "N_opt_exponent", "D_opt_exponent"} <= set(fit)
    assert fit["E"] == pytest.approx(1.8, rel=1e-6)
    assert fit["held_out"][0]["relative_error"] == pytest.approx(1 / 1.01 - 1, abs=1e-4)
    for name in ("isoflop", "contours", "residuals"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plan", "--compute=1e20", f"--fit={tmp_path / 'fit.json'}"]) == 0
    out = capsys.readouterr().out
    assert "own *" in out and "with 95 % confidence in the law" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["plan"], "give one budget"),
        (["plan", "--days=3"], "--days needs --topology"),
        (["plan", "--compute=1e20", "--fit=nothing.json"], "no such file"),
        (["describe"], "--gin_file is missing"),
        (["scaling", "fit"], "--input is missing"),
        (["scaling", "sweep"], "--workdir and --gin_file"),
        (["scaling"], "no such command"),
    ],
)
def test_wrong_requests_are_one_line(capsys, flags, message):
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1

"""Ranks, recall, classes by prompts and linear probes; and a tiny run on glyphs, from the fonts to its scores."""

import json
import math

import numpy as np
import pytest
from tiny import ROOT

from pretrain.core.errors import UserError
from pretrain.evaluate.matching import (
    Matching,
    class_vectors,
    explained,
    linear_probe,
    linear_regression,
    ranks,
    recall,
)
from pretrain.main import main


def test_ranks_count_what_is_better_or_equal():
    keys = np.eye(4)
    queries = np.array([[9.0, 1, 2, 3], [5, 4, 3, 2], [1, 1, 1, 1], [0, 0, 0, 1]])
    np.testing.assert_array_equal(ranks(queries, keys, np.arange(4)), [0, 1, 3, 0])
    scores = recall(np.array([0, 0, 4, 9]), "x")
    assert scores == {"x_r1": 0.5, "x_r5": 0.75, "x_r10": 1.0, "x_median_rank": 3.0}
    assert len(ranks(np.zeros((0, 4)), keys, np.zeros(0, int))) == 0


def test_ranks_of_many_queries_are_those_of_one():
    rng = np.random.default_rng(0)
    queries, keys, own = rng.normal(size=(2500, 8)), rng.normal(size=(300, 8)), rng.integers(300, size=2500)
    found = ranks(queries, keys, own)
    by_hand = [int((q @ keys.T > q @ keys[o] + 1e-9).sum()) for q, o in zip(queries[::500], own[::500], strict=True)]
    np.testing.assert_array_equal(found[::500], by_hand)


def test_prompts_are_averaged():
    def encode(texts):
        return np.array([[len(text), text.startswith("a "), 1.0] for text in texts])

    found = class_vectors(["cat", "horse"], ["{}", "a {}"], encode)
    total = encode(["cat", "horse"]) + encode(["a cat", "a horse"])
    np.testing.assert_allclose(found, total / np.linalg.norm(total, axis=1, keepdims=True))
    with pytest.raises(UserError, match="must each hold"):
        Matching(templates=("a photo",))


def test_a_linear_probe_finds_what_is_linear():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=900)
    features = 5 + 100 * rng.normal(size=(900, 6))  # scales and means do not matter
    features[np.arange(900), labels] += 400
    names = np.array(["x", "y", "z"])[labels]
    assert linear_probe(features[:600], names[:600], features[600:], names[600:]) > 0.95
    assert abs(linear_probe(features[:600], rng.permutation(names[:600]), features[600:], names[600:]) - 1 / 3) < 0.1
    assert linear_probe(features[:9], names[:9], features[600:603], np.array(["other"] * 3)) == 0


@pytest.mark.parametrize("size", [6, 300])
def test_linear_regression_is_ridge_regression(size):
    """As the weights' own equations have it, with more features than rows and with fewer."""
    rng = np.random.default_rng(0)
    x, y = 5 + rng.normal(size=(100, size)) * np.arange(1, size + 1), rng.normal(size=(40, size))
    x[:, 0] = 7  # says nothing, and is not divided by nothing
    targets = x @ rng.normal(size=(size, 2)) + [3, -7]
    (said,) = linear_regression(x, targets, y, [0.3])
    scale = x.std(axis=0) + 0.1 * np.sqrt(x.var(axis=0).mean())
    x, y = x / scale, y / scale
    away = x - x.mean(axis=0)
    penalty = 0.3 * np.square(away).sum() / len(x)
    weights = np.linalg.solve(away.T @ away + penalty * np.eye(size), away.T @ (targets - targets.mean(axis=0)))
    np.testing.assert_allclose(said, (y - x.mean(axis=0)) @ weights + targets.mean(axis=0), rtol=1e-8)


def test_explained_is_of_all_numbers_together():
    true = np.array([[0.0, 10], [2, 20], [4, 30]])
    assert explained(true, true) == 1
    assert explained(np.tile(true.mean(axis=0), (3, 1)), true) == 0
    assert explained(true + np.array([1, 0]), true) == pytest.approx(1 - 3 / 208)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """A finished `pretrain run` on two small faces, a few steps."""
    workdir = tmp_path_factory.mktemp("clip") / "run"
    faces = "{'glyphs': 'glyphs:DejaVuSansDisplay', 'unseen_face': 'glyphs:DejaVuSerifDisplay'}"
    small = ["INPUT=" + faces, "VALIDATION_FRACTION=0.2", "TRAIN_STEPS=4", "BATCH_SIZE=8", "CHECKPOINT_EVERY=4",
             "TransformerConfig.embed_dim=32", "TransformerConfig.mlp_dim=32", "TransformerConfig.num_layers=1",
             "Vision.num_layers=1", "TokenizerConfig.kind='bytes'", "SEQUENCE_LENGTH=40", "LOG_EVERY=1",
             "Matching.sets={'unseen face': 'unseen_face/train', 'seen': 'glyphs/train'}"]  # fmt: skip
    flags = [f"--gin_file={ROOT / 'gin_configs/runs/clip_glyphs.gin'}", f"--workdir={workdir}", "--workers=1"]
    assert main(["run", *flags, *(f"--gin.{binding}" for binding in small)]) == 0
    return workdir


def test_a_run_on_glyphs_from_fonts_to_scores(tiny_clip):
    scores = json.loads((tiny_clip / "evaluation.json").read_text())
    assert scores["objective"] == "ImageText" and math.isfinite(scores["loss"]) and scores["unusable"] == 0
    for name in ("unseen_face_to_text", "unseen_face_to_image", "seen_to_text", "seen_to_image"):
        assert 0 <= scores[f"{name}_r1"] <= scores[f"{name}_r5"] <= scores[f"{name}_r10"] <= 1
    assert scores["seen_candidates"] > scores["unseen_face_candidates"] > 5
    read = json.loads((tiny_clip / "data.json").read_text())
    assert read["sources"] == ["glyphs"] and read["unused_sources"] == ["unseen_face"]
    rows = [json.loads(line) for line in (tiny_clip / "metrics.jsonl").read_text().splitlines()]
    assert any("temperature" in row and "first" in row for row in rows)
    assert (tiny_clip / "report.html").exists()

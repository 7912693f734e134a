"""The recipes and presets that are shipped: each builds, and those for whole jobs run on a small corpus."""

import json
from pathlib import Path

import pytest
from corpora import output_table

from pretrain.core import config as gin_config
from pretrain.curate.recipe import Recipe, curate

RECIPES = Path(__file__).resolve().parents[2] / "data_recipes"
PROSE = (
    "The harbour was quiet when the boats came back to the town, and nobody had thought that they would.",
    "In winter the people of the valley have to carry water from the well to the houses that stand above it.",
    "She wrote to her sister with great care, because the letters would be read aloud to the whole family.",
    "There is a story about the bridge, that it was built in one night and that it will fall in one night.",
    "Farmers who came to the market with their carts could be seen from the tower long before they arrived.",
    "What the old man said of the sea was true, and those who have sailed on it will not forget his words.",
)


@pytest.fixture(autouse=True)
def no_configuration_left():
    yield
    gin_config.load([])


@pytest.mark.parametrize("path", sorted((RECIPES / "presets").glob("*.gin")), ids=lambda path: path.stem)
def test_presets_build_by_themselves(path):
    bindings = ["MODEL='model.bin'"] if "MODEL" in path.read_text() else []
    gin_config.load([str(path)], bindings)
    assert Recipe().stages


def test_whole_web_recipe_runs(tmp_path):
    records = {
        "good": "\n".join(PROSE),
        "copy": "\n".join(PROSE),
        "near": "\n".join(PROSE).replace("quiet", "silent"),
        "menu": "Home\nAbout\nContact\n" * 30,
        "foreign": "Der Hafen war ruhig, als die Boote in die Stadt kamen, und niemand hätte das gedacht. " * 9,
        "leak": "\n".join(reversed(PROSE)) + "\nWrite to anna.smith@gmail.com or call her at +1 202 555 0143.",
        "short": "Too short.",
    }
    lines = [json.dumps({"id": id_, "text": text}) for id_, text in records.items()]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    gin_config.load([str(RECIPES / "web_text.gin")], [f"INPUT='{tmp_path}/in.jsonl'", "NearDedup.min_similarity=0.6"])
    curate(Recipe(), tmp_path / "out", workers=1)
    rejected = {row["id"]: row["rule"] for row in output_table(tmp_path / "out", "rejected")}
    assert rejected["copy"] == "same_text" or rejected["good"] == "same_text"
    assert rejected["short"] == "min_characters"
    assert "menu" in rejected and "foreign" in rejected
    kept = {row["id"]: row["text"] for row in output_table(tmp_path / "out", "documents")}
    assert kept.keys() | rejected.keys() == records.keys()
    assert "anna.smith" not in kept["leak"] and "The harbour was quiet" in kept["leak"]

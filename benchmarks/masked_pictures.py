"""What a linear probe finds in features that were learned without labels, by hiding patches of handwritten digits.

    python benchmarks/masked_pictures.py --workdir=W [--objectives=masked,features] [--seeds=0,1,2] [--labels=0,100]

Trains gin_configs/runs/digits_OBJECTIVE.gin for each seed (on one corpus and cache), and then a logistic regression
on the mean of the encoder's hidden states. Beside it the same regression on a digit's 64 pixels and on the features of
an encoder that was not trained. `--labels`: labelled digits of the training split that the regression gets, the first
ones; 0 for all. Accuracies on the held-out digits are printed as one JSON object. Needs the extra [digits].
"""

import argparse
import json
import sys
from collections.abc import Callable

import jax
import numpy as np

from pretrain.core.errors import exit_code
from pretrain.core.rng import device_key
from pretrain.core.storage import Path, write_json
from pretrain.data.cache import read_info
from pretrain.data.documents import stored_examples
from pretrain.evaluate.matching import linear_probe
from pretrain.experiment import Experiment

SPLITS = "train", "validation"
ROWS = 250  # pictures or films encoded at once


def trained(run: str, seed: int, workdir: Path, bindings: list[str]) -> Experiment:
    """A finished run of gin_configs/runs/RUN.gin, on the corpus and cache that all runs of a workdir share."""
    shared = [f"Experiment.data='{workdir / 'data'}'", "CacheConfig.seed=0", f"SEED={seed}"]
    file = f"gin_configs/runs/{run}.gin"
    experiment = Experiment.from_gin([file], [*shared, *bindings], workdir=str(workdir / f"{run}_{seed}"))
    experiment.curate()
    experiment.cache()
    experiment.train()
    return experiment


def digits(data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pictures, uint8 [n, 8, 8, 1], and which digits they show, by split."""
    found = {}
    (source,) = read_info(data / "cache")["sources"]
    for split in SPLITS:
        records = list(stored_examples(data / "cache", source, split))
        found[split] = tuple(np.array([record[name] for record in records]) for name in ("image", "label"))
    return {split: (images, labels[:, 0]) for split, (images, labels) in found.items()}


def features(experiment: Experiment, params: dict, pictures: np.ndarray) -> np.ndarray:
    """What the encoder makes of whole pictures or films, or the copy that follows it where there is one.

    Returns:
        float32 [n, embed].
    """
    name = "images" if pictures.ndim == 4 else "frames"

    def encode(params, pictures):
        module = experiment.model.module(params)
        encoder = getattr(module, "target", module.encoder)
        return encoder(encoder.patches({name: pictures}))

    encode = jax.jit(encode)
    parts = [pictures[start : start + ROWS] for start in range(0, len(pictures), ROWS)]
    return np.concatenate([encode(params, part) for part in parts])


def accuracies(of: dict[str, np.ndarray], labels: dict[str, np.ndarray], counts: list[int]) -> dict[str, float]:
    """Of the probe on held-out digits, by number of labelled ones."""
    found = {}
    for count in counts:
        some = slice(count or None)
        probe = linear_probe(of["train"][some], labels["train"][some], of["validation"], labels["validation"])
        found[f"{count or 'all'}_labels"] = round(probe, 4)
    return found


def probed(experiment: Experiment, seed: int, probe: Callable) -> dict:
    """What `probe(way)` finds in the features of a finished run, and in those before its first step."""
    step, params = experiment.checkpoint()
    fresh = jax.jit(experiment.model.init)(device_key(seed, "init"))
    return {
        "steps": step,
        "learned": probe(lambda pictures: features(experiment, params, pictures)),
        "random": probe(lambda pictures: features(experiment, fresh, pictures)),
    }


def pixels(pictures: np.ndarray) -> np.ndarray:
    """Raw pixels side by side, from 0 to 1."""
    return pictures.reshape(len(pictures), -1) / 255


def parser_of(description: str, labels: str) -> argparse.ArgumentParser:
    """The flags that benchmarks of hidden patches share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--labels", default=labels)
    parser.add_argument("--gin", action="append", default=[], help="NAME=VALUE of every run, e.g. TRAIN_STEPS=300")
    return parser


def main() -> None:
    parser = parser_of(__doc__, labels="0,100")
    parser.add_argument("--objectives", default="masked,features")
    arguments = parser.parse_args()
    workdir, counts = Path(arguments.workdir), [int(each) for each in arguments.labels.split(",")]
    result = {}
    for objective in arguments.objectives.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            experiment = trained(f"digits_{objective}", seed, workdir, arguments.gin)
            data = digits(workdir / "data")
            labels = {split: labels for split, (_, labels) in data.items()}
            probe = lambda of: accuracies({s: of(x) for s, (x, _) in data.items()}, labels, counts)  # noqa: E731, B023
            result["pixels"] = probe(pixels)
            result[f"{objective}_{seed}"] = probed(experiment, seed, probe)
    write_json(workdir / "masked_pictures.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_code(main, "masked_pictures"))

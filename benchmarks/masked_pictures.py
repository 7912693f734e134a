"""What a linear probe finds in features that were learned without labels, by hiding patches of handwritten digits.

    python benchmarks/masked_pictures.py --workdir=W [--objectives=masked,features] [--seeds=0,1,2] [--labels=0,100]

Trains gin_configs/runs/digits_OBJECTIVE.gin for each seed (on one corpus and cache), and then a logistic regression
on the mean of the encoder's hidden states: 64 numbers, as many as a digit has pixels. Beside it the same regression on
these pixels and on the features of an encoder that was not trained. `--labels`: labelled digits of the training split
that the regression gets, the first ones; 0 for all. Accuracies on the held-out digits are printed as one JSON object.
Needs the extra [digits].
"""

import argparse
import json

import jax
import numpy as np

from pretrain.core.rng import device_key
from pretrain.core.storage import Path, write_json
from pretrain.data.cache import read_info
from pretrain.data.documents import stored_examples
from pretrain.evaluate.matching import linear_probe
from pretrain.experiment import Experiment

SPLITS = "train", "validation"


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

    return np.asarray(jax.jit(encode)(params, pictures), np.float32)


def accuracies(of: dict[str, np.ndarray], labels: dict[str, np.ndarray], counts: list[int]) -> dict[str, float]:
    """Of the probe on held-out digits, by number of labelled ones."""
    found = {}
    for count in counts:
        some = slice(count or None)
        probe = linear_probe(of["train"][some], labels["train"][some], of["validation"], labels["validation"])
        found[f"{count or 'all'}_labels"] = round(probe, 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--objectives", default="masked,features")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--labels", default="0,100")
    parser.add_argument("--gin", action="append", default=[], help="NAME=VALUE of every run, e.g. TRAIN_STEPS=300")
    arguments = parser.parse_args()
    workdir, counts = Path(arguments.workdir), [int(each) for each in arguments.labels.split(",")]
    result = {}
    for objective in arguments.objectives.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            experiment = trained(f"digits_{objective}", seed, workdir, arguments.gin)
            data = digits(workdir / "data")
            labels = {split: labels for split, (_, labels) in data.items()}
            probe = lambda of: accuracies({s: of(x) for s, (x, _) in data.items()}, labels, counts)  # noqa: E731, B023
            step, params = experiment.checkpoint()
            fresh = jax.jit(experiment.model.init)(device_key(seed, "init"))
            result["pixels"] = probe(lambda images: images.reshape(len(images), -1) / 255)
            result[f"{objective}_{seed}"] = {
                "steps": step,
                "learned": probe(lambda images: features(experiment, params, images)),  # noqa: B023
                "random": probe(lambda images: features(experiment, fresh, images)),  # noqa: B023
            }
    write_json(workdir / "masked_pictures.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

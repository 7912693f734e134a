"""Are the pictures that a diffusion model draws recognised, and what do training, sampler, steps and guidance do?

    pretrain run --gin_file=gin_configs/runs/digits_diffusion.gin --workdir=W    # or letters_diffusion.gin
    python benchmarks/diffusion.py --workdir=W [--samples=500] [--hidden=64] [--picture=docs/images/diffusion.png]

A classifier (one hidden layer, scikit-learn) learns the training pictures. Printed as one JSON object: its accuracy on
held-out pictures and on those drawn for each class with the averaged weights, and the Fréchet distance between its
hidden values of drawn and of held-out ones, as FID has it of Inception's (Heusel et al. 2017); that distance at every
checkpoint, and by sampler, steps and guidance at the last. The distance of training pictures, as many, is what it comes
to where all is well. Needs the extra [digits].
"""

import argparse
import functools
import json
import sys
import warnings

import jax
import numpy as np
from PIL import Image
from sklearn.neural_network import MLPClassifier

from pretrain.core.diffusion import PictureShape
from pretrain.core.errors import exit_code
from pretrain.core.storage import write_json
from pretrain.core.video import joined
from pretrain.data.cache import read_info
from pretrain.data.documents import stored_examples
from pretrain.evaluate.sampling import sample
from pretrain.experiment import Experiment
from pretrain.optim.averaging import average_of
from pretrain.train.checkpoint import Checkpointer


def pictures_of(experiment: Experiment, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of a split as the model sees them, float32 [n, pixels] from -1 to 1, and their classes."""
    cache, rng = experiment.data / "cache", np.random.default_rng(0)
    (source,) = read_info(cache)["sources"]
    examples = [experiment.objective.example(record, rng) for record in stored_examples(cache, source, split)]
    images = np.array([each["images"].reshape(-1) for each in examples], np.float32)
    return images / 127.5 - 1, np.array([each["labels"] for each in examples])


def features(classifier: MLPClassifier, images: np.ndarray) -> np.ndarray:
    """The classifier's hidden values."""
    return np.maximum(images @ classifier.coefs_[0] + classifier.intercepts_[0], 0)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two sets of features [n, f], each taken as normal."""
    means, (first, second) = [x.mean(0) for x in (a, b)], [np.cov(x, rowvar=False) for x in (a, b)]
    values, axes = np.linalg.eigh(first)
    root = axes * np.sqrt(np.maximum(values, 0))  # as good as the symmetric one, and of values that never change too
    shared = np.linalg.eigvalsh(root.T @ second @ root)
    overlap = 2 * np.sum(np.sqrt(np.maximum(shared, 0)))
    return float(np.sum((means[0] - means[1]) ** 2) + np.trace(first + second) - overlap)


def checkpoints(experiment: Experiment) -> dict[int, dict]:
    """The averaged weights of every checkpoint, by step."""
    trainer = experiment.trainer()
    shapes, found = jax.eval_shape(trainer.initial_state), {}
    with Checkpointer(experiment.workdir / "checkpoints", read_only=True) as checkpointer:
        for step in sorted(checkpointer.steps()):
            state, _ = checkpointer.restore(shapes, trainer.state_shardings, step)
            found[step] = average_of(state.opt_state)
    return found


class Studio:
    """Draws pictures and has them judged.

    Args:
        experiment: a finished run.
        samples: pictures to draw each time, all classes alike.
        hidden: values of the classifier.
    """

    def __init__(self, experiment: Experiment, samples: int, hidden: int):
        classes = experiment.objective.picture.classes
        self.experiment, self.labels = experiment, np.arange(samples, dtype=np.int32) % classes
        images, labels = pictures_of(experiment, "train")
        held_out, held_out_labels = pictures_of(experiment, "validation")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it could be trained longer
            self.classifier = MLPClassifier(hidden, max_iter=100, random_state=0).fit(images, labels)
        self.accuracy = self.classifier.score(held_out, held_out_labels)
        self.far = features(self.classifier, held_out)
        some = np.random.default_rng(0).permutation(len(images))[:samples]
        self.least = frechet(features(self.classifier, images[some]), self.far)

    @functools.cache  # noqa: B019 (there is one studio)
    def painter(self, **options):
        """Compiled: (weights, key) -> patches."""
        objective, model = self.experiment.objective, self.experiment.model
        options = {"path": objective.path, "predict": objective.predict, "steps": 50, **options}
        return jax.jit(
            lambda weights, key: sample(model.module(weights), objective.picture, key, self.labels, **options)
        )

    def draw(self, weights: dict, **options) -> np.ndarray:
        """Pictures float32 [samples, pixels]: patches put together."""
        patches, shape = self.painter(**options)(weights, jax.random.key(0)), self.experiment.objective.picture
        return np.asarray(joined(patches, shape.grid, shape.patch)).reshape(len(patches), -1)

    def judge(self, images: np.ndarray) -> dict[str, float]:
        """Share that is recognised, and the distance from real ones."""
        distance = frechet(features(self.classifier, images), self.far)
        return {"recognised": round(self.classifier.score(images, self.labels), 4), "distance": round(distance, 3)}


def write_picture(path: str, images: np.ndarray, shape: PictureShape) -> None:
    """A sheet: a column a class, ten rows."""
    sheet = images[: 10 * shape.classes].reshape(10, shape.classes, shape.height, shape.width)
    sheet = np.pad(sheet, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    sheet = sheet.transpose(0, 2, 1, 3).reshape(10 * (shape.height + 2), -1)
    scale = max(1, 32 // shape.height)
    large = np.clip((sheet + 1) * 127.5, 0, 255).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
    Image.fromarray(large).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--hidden", type=int, default=64, help="values of the classifier's hidden layer")
    parser.add_argument("--picture", help="PNG to write: ten of each class")
    arguments = parser.parse_args()
    experiment = Experiment.open(arguments.workdir)
    studio, weights = Studio(experiment, arguments.samples, arguments.hidden), checkpoints(experiment)
    last = weights[max(weights)]
    judged = lambda **options: studio.judge(studio.draw(last, **options))  # noqa: E731
    images = studio.draw(last)
    result = {
        "real": round(studio.accuracy, 4), "distance_of_training_pictures": round(studio.least, 3),
        "drawn": studio.judge(images),
        "by_step": {step: studio.judge(studio.draw(each)) for step, each in weights.items()},
        "by_sampler": {
            f"{sampler}_{steps}": judged(sampler=sampler, steps=steps)
            for sampler in ("ddim", "euler") for steps in (2, 5, 10, 20)
        },
        "by_guidance": {guidance: judged(guidance=guidance, steps=20) for guidance in (0.0, 1.5, 3.0)},
    }  # fmt: skip
    write_json(experiment.workdir / "diffusion.json", result)
    if arguments.picture:
        write_picture(arguments.picture, images, experiment.objective.picture)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_code(main, "diffusion"))

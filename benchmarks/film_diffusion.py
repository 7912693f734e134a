"""How films go on that a diffusion model draws from their first frames, beside how they went on.

    pretrain run --gin_file=gin_configs/runs/moving_digits_diffusion.gin --workdir=W
    python benchmarks/film_diffusion.py --workdir=W [--films=100] [--animation=docs/images/film_diffusion.gif]

Held-out films, drawn with the averaged weights. Printed as one JSON object: PSNR of the frames to come, all and one by
one, beside that of the last given frame kept; at every checkpoint, and by steps of the sampler at the last. Where
nothing is given, nothing can be compared: PictureShape.given must be above 0.
"""

import argparse
import functools
import json
import sys

import jax
import numpy as np
from diffusion import checkpoints

from pretrain.core.errors import check, exit_code
from pretrain.core.storage import write_json
from pretrain.core.video import cut, joined
from pretrain.data.cache import read_info
from pretrain.data.documents import stored_examples
from pretrain.evaluate.rollout import psnr, side_by_side, write_animation
from pretrain.evaluate.sampling import sample
from pretrain.experiment import Experiment

SHOWN = 6  # films of the animation


def held_out(experiment: Experiment, count: int) -> np.ndarray:
    """The first windows of held-out films, uint8 [films, frames, H, W, C]."""
    cache, frames = experiment.data / "cache", experiment.objective.picture.frames
    (source,) = read_info(cache)["sources"]
    stored = [record["frames"][:frames] for record in stored_examples(cache, source, "validation")]
    return np.stack(stored[:count])


class Projector:
    """Goes on with films.

    Args:
        experiment: a finished run.
        films: uint8 [films, frames, H, W, C].
    """

    def __init__(self, experiment: Experiment, films: np.ndarray):
        self.objective, self.model, self.films = experiment.objective, experiment.model, films
        shape = self.objective.picture
        patches = cut(films, shape.patch, shape.tube)[:, : shape.given_patches]
        self.given_BNP = patches.astype(np.float32) / 127.5 - 1

    @functools.cache  # noqa: B019 (there is one projector)
    def painter(self, steps: int):
        """Compiled: (weights, key) -> patches."""
        labels, o = np.zeros(len(self.films), np.int32), self.objective
        options = {"path": o.path, "predict": o.predict, "steps": steps}
        draw = lambda weights, key: sample(  # noqa: E731
            self.model.module(weights), o.picture, key, labels, self.given_BNP, **options
        )
        return jax.jit(draw)

    def draw(self, weights: dict, steps: int = 20) -> np.ndarray:
        """Films uint8 [films, frames, H, W, C]."""
        shape = self.objective.picture
        patches = np.asarray(self.painter(steps)(weights, jax.random.key(0)))
        pixels = np.clip(np.round((patches + 1) * 127.5), 0, 255).astype(np.uint8)
        return np.asarray(joined(pixels, shape.grid, shape.patch, shape.tube))

    def judge(self, drawn: np.ndarray) -> dict:
        """PSNR in decibels of the frames to come, all and one by one."""
        given = self.objective.picture.given
        each = [psnr(drawn[:, frame], self.films[:, frame]) for frame in range(given, drawn.shape[1])]
        return {"all": round(psnr(drawn[:, given:], self.films[:, given:]), 2), "each": [round(x, 2) for x in each]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--films", type=int, default=100)
    parser.add_argument("--animation", help="GIF to write: as films went on, and as they were drawn")
    arguments = parser.parse_args()
    experiment = Experiment.open(arguments.workdir)
    given = experiment.objective.picture.given
    check(given > 0, "film_diffusion.py: no frames are given to go on from; set PictureShape.given")
    films, weights = held_out(experiment, arguments.films), checkpoints(experiment)
    projector, last = Projector(experiment, films), weights[max(weights)]
    drawn, kept = projector.draw(last), films.copy()
    kept[:, given:] = films[:, given - 1 : given]
    result = {
        "films": len(films), "last_frame": projector.judge(kept), "drawn": projector.judge(drawn),
        "by_step": {step: projector.judge(projector.draw(each))["all"] for step, each in weights.items()},
        "by_sampler_steps": {steps: projector.judge(projector.draw(last, steps))["all"] for steps in (2, 5, 10, 50)},
    }  # fmt: skip
    write_json(experiment.workdir / "film_diffusion.json", result)
    if arguments.animation:
        rows = [np.concatenate([films[i], drawn[i]], axis=1) for i in range(min(SHOWN, len(films)))]
        write_animation(arguments.animation, side_by_side(*rows, scale=3), frames_per_second=3)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_code(main, "film_diffusion"))

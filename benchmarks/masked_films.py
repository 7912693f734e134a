"""Which digit moves, and how fast: what a linear probe finds in features that were learned by hiding parts of films.

    python benchmarks/masked_films.py --workdir=W [--seeds=0,1,2] [--labels=0] [--gin=...]

Trains gin_configs/runs/moving_digits_masked.gin for each seed (on one corpus and cache) on films of two digits. A
logistic regression then says which digit is seen in a film of a single one, and at which of nine speeds it moves (1 to
3 pixels a frame down or up, as many to a side): from the mean over a film of the encoder's hidden states after a layer,
from those of an encoder that was not trained, and from the film's raw pixels. Pictures of digits that the regression is
tried on are others than it was fitted to; the layer is chosen on half of the test films, and the accuracy is of the
other half. `--labels`: labelled films that it gets; 0 for all. Prints one JSON object. Needs the extra [digits].
"""

import dataclasses
import json
import sys
from collections.abc import Callable

import jax
import numpy as np
from masked_pictures import parser_of, pixels, trained
from masked_sound import TEST, best_of

from pretrain.core.errors import exit_code
from pretrain.core.rng import device_key, host_rng
from pretrain.core.storage import Path, write_json
from pretrain.curate.digits import FASTEST, film, load_digits
from pretrain.experiment import Experiment
from pretrain.models.build import build_model
from pretrain.models.vision import mean_of

TRAIN = 1_297  # pictures of digits that the regression may see; the other 500 (TEST) are what it is tried on
FILMS = 4  # of each of them
ROWS = 40  # films encoded at once: more do not fit a cache


def films(frames: int, rows: range, each: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Films of one digit, uint8 [n, frames, 32, 32, 1], and what is asked of them: which digit, and which speed."""
    images, labels = load_digits()
    made, speeds, digits = [], [], []
    for number in rows:
        for take in range(each):
            found, moved = film(images[number][None], host_rng(0, "probe films", number, take))
            made.append(found[:frames])
            speeds.append((abs(moved[0]) - 1) @ (FASTEST, 1))
            digits.append(labels[number])
    return np.stack(made), {"digit": np.array(digits), "speed": np.array(speeds)}


def hidden_states(experiment: Experiment, params: dict, shown: np.ndarray, of: Callable = mean_of) -> list[np.ndarray]:
    """What `of(states_BLD, valid_BL)` makes of what each layer gives, before any last norm, [n, ...] each."""
    found, config, encoder = [], experiment.model_config(), params["encoder"]
    for layers in range(1, config.num_layers + 1):
        # The first layers alone are an encoder of their own.
        model = build_model(dataclasses.replace(config, num_layers=layers), experiment.objective.model_needs)
        blocks = jax.tree.map(lambda x: x[:layers], encoder["stack"]["blocks"])  # noqa: B023
        first = params | {"encoder": encoder | {"stack": encoder["stack"] | {"blocks": blocks}}}

        @jax.jit
        def encode(params, shown):
            module = model.module(params).encoder  # noqa: B023
            module.stack.final_norm = None
            patches = module.patches({"frames": shown})
            return of(*module.encode(module.embed(patches), patches.valid_BL))

        found.append(np.concatenate([encode(first, shown[at : at + ROWS]) for at in range(0, len(shown), ROWS)]))
    return found


def main() -> None:
    arguments = parser_of(__doc__, labels="0").parse_args()
    workdir, result = Path(arguments.workdir), {}
    for seed in map(int, arguments.seeds.split(",")):
        experiment = trained("moving_digits_masked", seed, workdir, arguments.gin)
        frames, (step, params) = experiment.model_config().vision.frames, experiment.checkpoint()
        fresh = jax.jit(experiment.model.init)(device_key(seed, "init"))
        splits = {"train": films(frames, range(TRAIN), FILMS), "test": films(frames, range(TRAIN, TRAIN + TEST), 1)}
        ways = {
            "pixels": lambda shown: [pixels(shown)],
            "learned": lambda shown: hidden_states(experiment, params, shown),  # noqa: B023
            "random": lambda shown: hidden_states(experiment, fresh, shown),  # noqa: B023
        }
        layers = {name: {split: way(shown) for split, (shown, _) in splits.items()} for name, way in ways.items()}
        result[f"seed_{seed}"] = {"steps": step} | {
            f"{asked}_{labels or 'all'}_labels": {
                name: best_of(found, {split: told[asked] for split, (_, told) in splits.items()}, labels)
                for name, found in layers.items()
            }
            for asked in ("digit", "speed") for labels in map(int, arguments.labels.split(","))
        }  # fmt: skip
    write_json(workdir / "masked_films.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_code(main, "masked_films"))

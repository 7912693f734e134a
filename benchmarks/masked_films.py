"""Which digit moves: what a linear probe finds in features that were learned by hiding parts of films.

    python benchmarks/masked_films.py --workdir=W [--seeds=0,1,2] [--labels=200,500,0] [--gin=...]

Trains gin_configs/runs/moving_digits_masked.gin for each seed (on one corpus and cache) on films of two digits. A
logistic regression then says which digit is seen in a film of a single one, from the mean of the encoder's hidden
states, from those of an encoder that was not trained, and from the film's raw pixels; pictures of digits that the
regression is tried on are others than it was fitted to. `--labels`: labelled films that it gets; 0 for all. Accuracies
are printed as one JSON object. Needs the extra [digits].
"""

import json

import numpy as np
from masked_pictures import accuracies, parser_of, pixels, probed, trained

from pretrain.core.rng import host_rng
from pretrain.core.storage import Path, write_json
from pretrain.curate.digits import film, load_digits

TRAIN = 1_297  # pictures of digits that the regression may see; the other 500 are its test


def films(frames: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Films of one digit each, uint8 [n, frames, 32, 32, 1], and which it is, by split."""
    images, labels = load_digits()
    shown = np.stack([film(image[None], host_rng(0, "probe films", n))[:frames] for n, image in enumerate(images)])
    return {"train": (shown[:TRAIN], labels[:TRAIN]), "validation": (shown[TRAIN:], labels[TRAIN:])}


def main() -> None:
    arguments = parser_of(__doc__, labels="200,500,0").parse_args()
    workdir, counts, result = Path(arguments.workdir), [int(each) for each in arguments.labels.split(",")], {}
    for seed in map(int, arguments.seeds.split(",")):
        experiment = trained("moving_digits_masked", seed, workdir, arguments.gin)
        data = films(experiment.model_config().vision.frames)
        labels = {split: found[1] for split, found in data.items()}
        probe = lambda of: accuracies({s: of(x) for s, (x, _) in data.items()}, labels, counts)  # noqa: E731, B023
        result["pixels"] = probe(pixels)
        result[f"seed_{seed}"] = probed(experiment, seed, probe)
    write_json(workdir / "masked_films.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

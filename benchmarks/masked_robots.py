"""Where a simulated robot is: what a linear probe finds in features that were learned by hiding parts of its films.

    python benchmarks/masked_robots.py --workdir=W [--seeds=0,1,2] [--labels=500,1000,2000,0] [--gin=...]

Trains gin_configs/runs/pusht_masked.gin for each seed (on one corpus and cache) on films of four frames. Ridge
regression then says the robot's place in the last of them, two numbers: from the encoder's hidden states of the last
frames' patches side by side, from those of an encoder that was not trained, and from the raw pixels that these patches
show. Its films are of episodes that no recipe records, and in them the robot acts at random: elsewhere it is where the
block is, which says half of its place. Layer and penalty are chosen on half of the test films; the share of the places'
variance that is explained is of the other half, and so are mean distances in pixels of a field of 512 x 512.
`--labels`: films whose place is told; 0 for all. Prints one JSON object. Needs the extra [robots].
"""

import json
import sys

import jax
import numpy as np
from masked_films import hidden_states
from masked_pictures import parser_of, pixels, trained
from world_model import UNSEEN

from pretrain.core.errors import exit_code
from pretrain.core.rng import device_key, host_rng
from pretrain.core.storage import Path, write_json
from pretrain.curate.pusht import World, play, policy
from pretrain.evaluate.matching import explained, linear_regression

EPISODES = {"train": range(UNSEEN + 120_000, UNSEEN + 121_000), "test": range(UNSEEN + 140_000, UNSEEN + 140_500)}
FILMS = {"train": 4, "test": 2}  # of each of them
STEPS = 24  # of an episode
PENALTIES = 10.0 ** np.arange(-6, 2)


def films(frames: int, episodes: range, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Films uint8 [n, frames, 96, 96, 3], those of an episode together, and the places in their last frames [n, 2]."""
    world, found = World(), []
    for number in episodes:
        episode, rng = play(world, number, policy("random", number), STEPS), host_rng(0, "robot", number)
        if (starts := len(episode["states"]) - frames + 1) < 1:
            continue  # it began near the goal
        begun = rng.integers(starts, size=each)
        found += [(episode["frames"][at : at + frames], episode["states"][at + frames - 1]) for at in begun]
    return tuple(np.stack(part) for part in zip(*found, strict=True))


def best_of(layers: dict[str, list[np.ndarray]], places: dict[str, np.ndarray], labels: int) -> dict[str, float]:
    """On half of the test, of the layer and penalty that are best on the other half."""
    some = np.arange(len(places["train"])).reshape(-1, FILMS["train"]).T.ravel()[: labels or None]  # of all episodes
    half, tried = len(places["test"]) // 2, []
    for number, (train, test) in enumerate(zip(layers["train"], layers["test"], strict=True)):
        for said in linear_regression(train[some], places["train"][some], test, PENALTIES):
            tried.append((explained(said[:half], places["test"][:half]), number, said[half:]))
    _, layer, said = max(tried, key=lambda each: each[0])
    true = places["test"][half:]
    off = np.linalg.norm(said - true, axis=1).mean()
    return {"explained": round(explained(said, true), 4), "off": round(float(off), 1), "layer": layer}


def main() -> None:
    arguments = parser_of(__doc__, labels="500,1000,2000,0").parse_args()
    workdir, counts, result = Path(arguments.workdir), [int(each) for each in arguments.labels.split(",")], {}
    splits = {}
    for seed in map(int, arguments.seeds.split(",")):
        experiment = trained("pusht_masked", seed, workdir, arguments.gin)
        vision, (step, params) = experiment.model_config().vision, experiment.checkpoint()
        fresh = jax.jit(experiment.model.init)(device_key(seed, "init"))
        if not splits:
            splits = {name: films(vision.frames, EPISODES[name], FILMS[name]) for name in FILMS}
        last = (96 // vision.patch_size) ** 2
        side_by_side = lambda states_BLD, _: states_BLD[:, -last:].reshape(len(states_BLD), -1)  # noqa: E731, B023
        ways = {
            "pixels": lambda shown: [pixels(shown[:, -vision.tube :]).astype(np.float32)],  # noqa: B023
            "learned": lambda shown: hidden_states(experiment, params, shown, side_by_side),  # noqa: B023
            "random": lambda shown: hidden_states(experiment, fresh, shown, side_by_side),  # noqa: B023
        }
        places, result[f"seed_{seed}"] = {split: told for split, (_, told) in splits.items()}, {"steps": step}
        for name, way in ways.items():  # one after another: each takes gigabytes
            layers = {split: way(shown) for split, (shown, _) in splits.items()}
            result[f"seed_{seed}"][name] = {f"{n or 'all'}_labels": best_of(layers, places, n) for n in counts}
    write_json(workdir / "masked_robots.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_code(main, "masked_robots"))

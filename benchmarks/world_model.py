"""What a trained world model knows of unseen episodes of the simulated robot, and how its policy does.

    pretrain run --gin_file=gin_configs/runs/pusht_world.gin --workdir=W
    python benchmarks/world_model.py --workdir=W [--episodes=40] [--starts=50] [--animation=docs/images/world_model.gif]

Prints one JSON object: decibels (PSNR over all pixels of all frames) of the model, of the last frame kept, and of the
model with the actions of other windows, one step ahead and eight; the share of unseen starts at which the scripted
policy and the learned one bring the block to its place. Needs the extra [robots].
"""

import argparse
import functools
import json
import sys

import jax
import numpy as np

from pretrain.core.errors import exit_code
from pretrain.core.storage import write_json
from pretrain.curate.pusht import World, play, policy
from pretrain.evaluate.rollout import act, psnr, rollout, side_by_side, write_animation
from pretrain.experiment import Experiment

UNSEEN = 1_000_000  # number of the first episode that no recipe records
SEEN, AHEAD = 4, 8  # frames that are looked back over, and imagined
BATCH = 32


def windows(world: World, episodes: int) -> dict[str, np.ndarray]:
    """Windows of SEEN + AHEAD frames of unseen episodes under noise, with the actions from the last seen frame on."""
    found = {"frames": [], "states": [], "actions": []}
    for number in range(UNSEEN, UNSEEN + episodes):
        episode = play(world, number, policy("noisy", number))
        for start in range(0, len(episode["states"]) - SEEN - AHEAD + 1, AHEAD):
            found["frames"].append(episode["frames"][start : start + SEEN + AHEAD])
            found["states"].append(episode["states"][start : start + SEEN])
            found["actions"].append(episode["actions"][start + SEEN - 1 : start + SEEN - 1 + AHEAD])
    return {name: np.stack(values) for name, values in found.items()}


def predictions(imagine, params, data: dict[str, np.ndarray], actions: np.ndarray) -> np.ndarray:
    """Frames imagined from the seen part of each window, uint8 [windows, AHEAD, H, W, C]."""
    count, found = len(actions), []
    for start in range(0, count, BATCH):
        rows = np.arange(start, start + BATCH) % count  # the last batch is filled up
        frames, _ = imagine(params, data["frames"][rows, :SEEN], data["states"][rows], actions[rows])
        found.append(np.asarray(frames)[: count - start])
    return np.concatenate(found)


def decibels(data: dict[str, np.ndarray], imagined: np.ndarray, shuffled: np.ndarray) -> dict[str, dict[str, float]]:
    """PSNR of the model, of the last frame, and of the model told other actions; at the first step and the last."""
    truth, last = data["frames"][:, SEEN:], data["frames"][:, SEEN - 1 : SEEN]
    result = {}
    for name, step in (("1_step", 0), (f"{AHEAD}_steps", AHEAD - 1)):
        found = {"model": imagined[:, step], "last_frame": last[:, 0], "other_actions": shuffled[:, step]}
        result[name] = {kind: round(psnr(frames, truth[:, step]), 2) for kind, frames in found.items()}
    return result


def success(world: World, starts: int, decide) -> float:
    """Share of unseen starts at which the block comes to its place."""
    numbers = range(UNSEEN + 10_000, UNSEEN + 10_000 + starts)
    return float(np.mean([play(world, number, decide)["success"] for number in numbers]))


def learned(choose, params):
    """The learned policy, as `play` wants it."""

    def decide(world: World):
        action = np.asarray(choose(params, world.frame[None], np.asarray(world.agent, np.float32)[None]))[0]
        return action, action

    return decide


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--episodes", type=int, default=40)
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--animation", help="GIF to write: truth, imagined")
    arguments = parser.parse_args()
    experiment, world = Experiment.open(arguments.workdir), World()
    step, params = experiment.checkpoint()
    model, video = experiment.model, experiment.objective.video
    imagine = jax.jit(functools.partial(rollout, model, video))
    data = windows(world, arguments.episodes)
    imagined = predictions(imagine, params, data, data["actions"])
    shuffled = predictions(imagine, params, data, np.roll(data["actions"], len(data["actions"]) // 2, axis=0))
    choose = jax.jit(functools.partial(act, model, video))
    result = {
        "step": step, "windows": len(imagined), **decibels(data, imagined, shuffled), "starts": arguments.starts,
        "scripted": success(world, arguments.starts, policy("scripted", 0)),
        "learned": success(world, arguments.starts, learned(choose, params)),
    }  # fmt: skip
    write_json(experiment.workdir / "world_model.json", result)
    if arguments.animation:
        moved = np.abs(np.diff(data["frames"].astype(np.int16), axis=1)).mean((1, 2, 3, 4))
        best = np.argsort(-moved)[:3]  # the liveliest windows
        truth, guess = data["frames"][best, SEEN:], imagined[best]
        rows = [side_by_side(*(film for pair in zip(truth, guess, strict=True) for film in pair))]
        write_animation(arguments.animation, np.concatenate(rows), frames_per_second=4)
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(exit_code(main, "world_model"))

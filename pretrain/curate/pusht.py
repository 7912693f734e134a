"""Robot episodes made here: a disc pushes a T-shaped block to its place, in gym-pusht's simulator (Chi et al. 2023).

    pusht:300      300 episodes, by turns of a scripted policy, the same one under noise, and a random one

Every episode follows from its number alone. A document is an episode: its text is the instruction, its arrays are
`frames` uint8 [steps, 96, 96, 3], `states` float32 [steps, 2] (the disc's place), `actions` (where it was told to go),
`action_targets` (where the scripted policy would have sent it, whoever acts; DAgger, Ross et al. 2011) and
`action_weights` (1 for all). Places are in pixels of a field of 512 x 512.

The task is the block's place, within `NEAR` of where it should be; its angle is left alone. (The benchmark's own
success, 95 % of the area covered, is beyond so simple a policy; `coverage` in the metadata says how far it got.)

The simulator comes with the extra [robots].
"""

import json
import math
import os
from collections.abc import Callable, Iterator

import numpy as np

from pretrain.core.arrays import to_bytes
from pretrain.core.errors import UserError, check
from pretrain.core.rng import host_rng
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import Fields

FORMAT = "pusht"
INSTRUCTION = "push the block to its place"
POLICIES = ("scripted", *("noisy",) * 3, "random", "scripted", *("noisy",) * 4)  # of an episode, by its number
UNIT = 10  # episodes read together
STEPS = 100  # of an episode, at most; 10 a second
NEAR = 30.0  # pixels between the block's centre of mass and its goal, at success
STEP_BYTES = 96 * 96 * 3
CENTRE = np.array([0.0, 45.0])  # of the block's mass, in its own coordinates
ORBIT, REACH, STRIDE = 115.0, 45.0, 60.0  # pixels: of the way round, off the line, ahead of the disc


def centre_of_mass(pose: np.ndarray) -> np.ndarray:
    """Where the block's centre of mass is, float64 [2], from x, y and angle."""
    cos, sin = math.cos(pose[2]), math.sin(pose[2])
    return pose[:2] + np.array([[cos, -sin], [sin, cos]]) @ CENTRE


def scripted(agent: np.ndarray, block: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Where to send the disc: round the block until it is behind it as seen from the goal, then through it.

    Args:
        agent: float [2].
        block, goal: centres of mass, float [2].
    """
    way = (goal - block) / max(float(np.linalg.norm(goal - block)), 1e-6)
    there = agent - block
    along = float(there @ way)
    aside = float(np.linalg.norm(there - along * way))
    if along < 0 and aside < REACH:
        return block + way * (along + STRIDE * max(0.3, 1 - aside / REACH))
    angle, wanted = math.atan2(there[1], there[0]), math.atan2(-way[1], -way[0])
    turn = (wanted - angle + math.pi) % (2 * math.pi) - math.pi
    angle += float(np.clip(turn, -0.6, 0.6))
    return block + ORBIT * np.array([math.cos(angle), math.sin(angle)])


class World:
    """The simulator, one episode after another."""

    def __init__(self):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            import gym_pusht  # noqa: F401 (registers the simulator)
            import gymnasium
        except ImportError as error:
            raise UserError("--input=pusht needs a simulator: pip install 'pretrain[robots]'") from error
        made = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos", render_mode="rgb_array")
        self._world = made.unwrapped

    def reset(self, number: int) -> None:
        """Begins the episode of a number."""
        observed, info = self._world.reset(seed=number)
        self._take(observed, info)

    def step(self, action: np.ndarray) -> None:
        """A tenth of a second with the disc pulled towards a place."""
        observed, _, _, _, info = self._world.step(np.clip(action, 0, 512))
        self._take(observed, info)
        self.coverage = float(info["coverage"])

    def _take(self, observed: dict, info: dict) -> None:
        self.frame, self.agent = observed["pixels"], np.asarray(observed["agent_pos"], np.float64)
        self.block, self.goal = centre_of_mass(info["block_pose"]), centre_of_mass(info["goal_pose"])
        self.coverage = 0.0

    @property
    def is_near(self) -> bool:
        """Whether the block is where it should be."""
        return float(np.linalg.norm(self.block - self.goal)) < NEAR


def play(world: World, number: int, act: Callable[[World], tuple[np.ndarray, np.ndarray]], steps: int = STEPS) -> dict:
    """An episode: `frames`, `states`, `actions`, `action_targets`, each [steps, ...], and `success`.

    Args:
        world: the simulator.
        number: of the episode; one that begins near the goal has no steps.
        act: (world) -> (what is done, what should be), float [2] each.
        steps: at most.
    """
    world.reset(number)
    kept = {"frames": [], "states": [], "actions": [], "action_targets": []}
    for _ in range(steps):
        if world.is_near:
            break
        action, target = (np.clip(each, 0, 512) for each in act(world))
        for name, value in zip(kept, (world.frame, world.agent, action, target), strict=True):
            kept[name].append(value)
        world.step(action)
    arrays = {name: np.array(values, np.float32) for name, values in kept.items() if name != "frames"}
    frames = np.array(kept["frames"], np.uint8).reshape(-1, 96, 96, 3)
    return {"frames": frames, **arrays, "success": world.is_near, "coverage": world.coverage}


def policy(name: str, number: int) -> Callable[[World], tuple[np.ndarray, np.ndarray]]:
    """One of `POLICIES` for one episode, with noise of its own."""
    rng = host_rng(0, f"pusht {name}", number)
    held = np.zeros(2)

    def act(world: World) -> tuple[np.ndarray, np.ndarray]:
        nonlocal held
        right = scripted(world.agent, world.block, world.goal)
        if rng.random() < 0.25:  # noise and random aims last a few steps
            held = rng.uniform(0, 512, 2) if name == "random" else rng.normal(0, 40, 2)
        done = {"scripted": right, "noisy": right + held, "random": held}[name]
        return done, right

    return act


def find_episodes(given: str, source: str) -> list[InputFile]:
    """Units of work for `pusht:EPISODES`.

    Raises:
        UserError: not a number of episodes.
    """
    check(given.isdigit() and int(given) > 0, f"--input=pusht:{given}: write pusht:EPISODES, e.g. pusht:300")
    starts = range(0, int(given), UNIT)
    return [
        InputFile(f"{FORMAT}:{start}-{min(start + UNIT, int(given))}", UNIT * STEPS * STEP_BYTES, source, FORMAT)
        for start in starts
    ]


def read_episodes(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """The episodes of a unit, each a document; one without two frames is counted as unreadable."""
    del fields
    first, last = map(int, file.path.partition(":")[2].split("-"))
    world = World()
    for number in range(first, last):
        kind = POLICIES[number % len(POLICIES)]
        origin = f"{FORMAT}/{kind}/{number}"
        episode = play(world, number, policy(kind, number))
        steps = len(episode["states"])
        if steps < 2:
            yield Unreadable(origin, f"an episode of {steps} frames", rule="one_frame")
            continue
        told = {
            "policy": kind,
            "steps": steps,
            "success": episode["success"],
            "coverage": round(episode["coverage"], 4),
        }
        episode["action_weights"] = np.ones(steps, np.float32)
        names = ("frames", "states", "actions", "action_targets", "action_weights")
        arrays = {name: to_bytes(episode[name]) for name in names}
        yield Record(INSTRUCTION, origin, group=origin, metadata=json.dumps(told), arrays=arrays)

"""Episodes of the simulated robot: the scripted policy, what is kept of an episode, what is counted and left out."""

import json
import sys

import numpy as np
import pytest

from pretrain.core.arrays import from_bytes
from pretrain.core.errors import UserError
from pretrain.curate import pusht
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.formats import find_inputs, read_file
from pretrain.curate.readers import Fields

GOAL = np.array([250.0, 280.0])


class Sliding:
    """A world without a simulator: the disc goes where it is told, and a block within 40 pixels goes along."""

    def __init__(self):
        self.coverage = 0.5

    def reset(self, number):
        rng = np.random.default_rng(number)
        self.agent, self.block, self.goal = rng.uniform(50, 450, 2), rng.uniform(120, 380, 2), GOAL
        if number == 4:  # begins at the goal
            self.block = GOAL + 5
        self.frame = np.full((96, 96, 3), number, np.uint8)

    def step(self, action):
        moved = np.clip(action - self.agent, -20, 20)
        self.agent = self.agent + moved
        if np.linalg.norm(self.block - self.agent) < 40:
            self.block = self.block + moved

    is_near = pusht.World.is_near


def test_the_disc_goes_behind_the_block_and_then_through_it():
    block, goal = np.array([200.0, 200.0]), np.array([300.0, 200.0])
    behind = pusht.scripted(np.array([120.0, 210.0]), block, goal)
    assert behind[0] > 140 and abs(behind[1] - 200) < 1e-6, "on the line, towards the goal"
    in_front = pusht.scripted(np.array([310.0, 200.0]), block, goal)
    assert np.linalg.norm(in_front - block) == pytest.approx(pusht.ORBIT)
    assert abs(in_front[1] - 200) > 50, "round the block, not through it"


def test_the_scripted_policy_brings_the_block_to_its_place():
    world = Sliding()
    played = [pusht.play(world, number, pusht.policy("scripted", number)) for number in range(10, 30)]
    assert np.mean([episode["success"] for episode in played]) >= 0.9
    for episode in played:
        steps = len(episode["frames"])
        assert {len(episode[name]) for name in ("states", "actions", "action_targets")} == {steps} and steps <= 100


def test_noise_is_done_and_the_right_action_is_kept_beside_it():
    world = Sliding()
    episode = pusht.play(world, 11, pusht.policy("noisy", 11))
    apart = np.abs(episode["actions"] - episode["action_targets"]).max(1)
    assert (apart > 1).any()
    again = pusht.play(world, 11, pusht.policy("noisy", 11))
    np.testing.assert_array_equal(episode["actions"], again["actions"])
    other = pusht.play(world, 11, pusht.policy("random", 11), steps=7)
    assert len(other["actions"]) == 7


def test_a_unit_of_episodes_becomes_documents(monkeypatch):
    monkeypatch.setattr(pusht, "World", Sliding)
    files, _ = find_inputs("pusht:13", "robots")
    assert [file.path for file in files] == ["pusht:0-10", "pusht:10-13"]
    assert {file.source for file in files} == {"robots"}
    found = list(read_file(files[0], Fields()))
    records = [item for item in found if isinstance(item, Record)]
    [dropped] = [item for item in found if isinstance(item, Unreadable)]
    assert (dropped.rule, len(records)) == ("one_frame", 9)
    for record in records:
        told, arrays = json.loads(record.metadata), {name: from_bytes(data) for name, data in record.arrays.items()}
        assert {len(array) for array in arrays.values()} == {told["steps"]}
        assert arrays["frames"].shape[1:] == (96, 96, 3) and arrays["frames"].dtype == np.uint8
        assert arrays["states"].dtype == arrays["action_targets"].dtype == np.float32
        assert (arrays["action_weights"] == 1).all(), "what the scripted policy would do, whoever acts"
        assert record.group == record.origin and told["policy"] in record.origin


def test_a_number_of_episodes_is_asked_for():
    for given in ("pusht:", "pusht:many", "pusht:0"):
        with pytest.raises(UserError, match="write pusht:EPISODES"):
            find_inputs(given, "robots")


def test_without_the_simulator_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gym_pusht", None)
    with pytest.raises(UserError, match=r"pretrain\[robots\]"):
        pusht.World()

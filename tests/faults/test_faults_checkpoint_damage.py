"""300 random damages to checkpoints, seeded: never a silent load of bad data, and all of them told."""

import collections
import os

from checkpoint_damage import damage_and_restore, write_checkpoints

TRIALS, SEED = 300, int(os.environ.get("FAULT_SEED", "0"))


def test_no_damage_is_loaded_in_silence(tmp_path):
    original = write_checkpoints(tmp_path / "original")
    kinds = collections.Counter()
    for trial in range(TRIALS):
        story = damage_and_restore(original, tmp_path / "run", SEED * TRIALS + trial)
        kinds.update(part.rpartition(" in ")[0] for part in story.partition(": ")[2].split(", "))
    print(f"{TRIALS} trials, {sum(kinds.values())} damages: {dict(kinds)}")
    assert sum(kinds.values()) >= TRIALS

"""Sources that need an extra, with the real libraries: `make test-extras` installs them and runs this.

espeak-ng is no Python package and must be there already (`apt-get install espeak-ng`).
"""

import numpy as np

from pretrain.core.arrays import from_bytes
from pretrain.core.sound import RATE, decode
from pretrain.curate import pusht
from pretrain.curate.formats import find_inputs, read_file
from pretrain.curate.readers import Fields


def test_the_simulator():
    world = pusht.World()
    episode = pusht.play(world, 0, pusht.policy("scripted", 0))
    again = pusht.play(world, 0, pusht.policy("scripted", 0))
    assert episode["success"] and episode["frames"].shape == (len(episode["states"]), 96, 96, 3)
    np.testing.assert_array_equal(episode["frames"], again["frames"])
    assert np.abs(np.diff(episode["frames"].astype(int), axis=0)).sum((1, 2, 3)).all(), "the disc moves"


def test_the_digits():
    files, _ = find_inputs("digits:pictures", "digits")
    records = [record for file in files for record in read_file(file, Fields())]
    assert len(records) == 1797
    labels = [int(from_bytes(record.arrays["label"])[0]) for record in records]
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # the data set's own


def test_espeak_speaks():
    files, _ = find_inputs("espeak:3", "spoken")
    found = [record for file in files for record in read_file(file, Fields())]
    assert len(found) == 3
    assert all(0.2 < len(decode(record.arrays["sound"])) / RATE < 6 for record in found)

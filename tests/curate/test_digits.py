"""Digits of scikit-learn as pictures and as films; a stand-in for the library where it is not installed."""

import json
import sys
import types

import numpy as np
import pytest

from pretrain.core.arrays import from_bytes
from pretrain.core.errors import UserError
from pretrain.curate import digits
from pretrain.curate.formats import find_inputs, read_file
from pretrain.curate.readers import Fields


@pytest.fixture
def library(monkeypatch):
    """A library of 40 digits, four of each, brightest where a digit's number says."""
    images = np.zeros((40, 8, 8))
    images[np.arange(40), 2, np.arange(40) % 8] = 16.0
    found = types.SimpleNamespace(images=images, target=np.arange(40) % 10)
    module = types.SimpleNamespace(datasets=types.SimpleNamespace(load_digits=lambda: found))
    monkeypatch.setitem(sys.modules, "sklearn", module)


def records(given):
    files, _ = find_inputs(given, "school")
    assert {file.source for file in files} == {"school"}
    return [record for file in files for record in read_file(file, Fields())]


def test_pictures_have_their_class(library):
    found = records("digits:pictures")
    assert len(found) == 40 and found[23].text == "three"
    image, label = (from_bytes(found[23].arrays[name]) for name in ("image", "label"))
    assert (image.shape, image.dtype, label.tolist(), label.dtype) == ((8, 8, 1), np.uint8, [3], np.int32)
    assert image.max() == 255 and image[2, 23 % 8] == 255


def test_films_are_made_from_their_numbers(library):
    found, again = records("digits:130"), records("digits:130")
    assert len(found) == 130 and len({record.origin for record in found}) == 130
    for record, same in zip(found[::40], again[::40], strict=True):
        frames = from_bytes(record.arrays["frames"])
        assert frames.shape == (16, 32, 32, 1) and frames.dtype == np.uint8
        assert record.arrays == same.arrays and len(json.loads(record.metadata)["digits"]) == 2
    assert found[0].arrays != found[1].arrays


def test_digits_move_evenly_and_stay_inside():
    bright = np.zeros((1, 8, 8), np.uint8)
    bright[0, 0, 0] = 200
    for seed in range(20):
        frames, speeds = digits.film(bright, np.random.default_rng(seed))
        frames = frames[..., 0]
        assert speeds.shape == (1, 2) and set(np.abs(speeds).ravel()) <= {1, 2, 3}
        assert (frames.reshape(16, -1).sum(1) == 200).all(), "never cut off"
        places = np.argwhere(frames)[:, 1:]
        steps = np.abs(np.diff(places, axis=0))
        assert places.max() <= 24 and steps.max() <= digits.FASTEST
        assert (steps == steps.max(0)).mean() > 0.6, "one speed, but where it bounces"


def test_what_cannot_be_read_is_said(monkeypatch):
    with pytest.raises(UserError, match="digits:FILMS"):
        find_inputs("digits:some", "digits")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UserError, match=r"pretrain\[digits\]"):
        digits.load_digits()

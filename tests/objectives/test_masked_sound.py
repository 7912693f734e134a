"""Masked sound: what is hidden, what it is told from, what is left out, and what the terms of the loss are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import WAVES
from hypothesis import given
from hypothesis import strategies as st

from pretrain.core.errors import UserError
from pretrain.core.rng import host_rng
from pretrain.core.sound import Waves, encode
from pretrain.models.wave import Heard
from pretrain.objectives.masked_sound import MaskedSound

TASK = MaskedSound(waves=WAVES, distractors=6)
FRAMES = WAVES.frames(WAVES.samples)


def record(samples: int) -> dict[str, np.ndarray]:
    sound = np.random.default_rng(0).integers(-9000, 9000, samples).astype(np.int16)
    return {"sound": np.frombuffer(encode(sound), np.uint8)}


@given(frames=st.integers(3, 800), rate=st.floats(0.001, 0.99), span=st.integers(1, 20), seed=st.integers(0, 99))
def test_two_frames_or_more_are_hidden_and_not_all(frames, rate, span, seed):
    hidden = MaskedSound(start_rate=rate, span=span).hide(frames, np.random.default_rng(seed))
    assert len(hidden) == frames and 2 <= hidden.sum() < frames


def test_as_much_is_hidden_as_in_the_paper():
    """About 49 % of the frames of a recording of 15 s, in spans of 10 that may overlap."""
    task, rng = MaskedSound(), np.random.default_rng(0)
    hidden = np.array([task.hide(749, rng) for _ in range(200)])
    assert hidden.mean() == pytest.approx(0.49, abs=0.01)
    starts = (np.diff(hidden.astype(int), axis=1) == 1).sum(1)
    assert (hidden[:, 1:-1].sum(1) / starts).mean() == pytest.approx(14.7, abs=1.5)  # the paper's mean


def test_others_are_hidden_frames_but_not_the_own_one():
    rng = np.random.default_rng(0)
    hidden = TASK.hide(FRAMES, rng)
    others = TASK.others(hidden, rng)
    for place in range(FRAMES):
        if hidden[place]:
            assert hidden[others[place]].all() and place not in others[place]
        else:
            assert not others[place].any()


def test_of_a_long_recording_a_part_is_heard():
    found = [TASK.example(record(3 * WAVES.samples), host_rng(0, "x", epoch)) for epoch in range(2)]
    assert all(each["lengths"] == WAVES.samples for each in found)
    assert not np.array_equal(found[0]["samples"], found[1]["samples"])
    short = TASK.example(record(WAVES.samples - 200), host_rng(0, "x"))
    assert short["lengths"] == WAVES.samples - 200 and not short["samples"][-200:].any()
    assert not short["hidden"][WAVES.frames(WAVES.samples - 200) :].any()


@pytest.mark.parametrize("given", [record(0), record(100), {"sound": np.zeros(0, np.uint8)}], ids=str)
def test_what_cannot_be_used_is_counted(given):
    rows = [TASK.prepare(each, host_rng(0, "x"))["row"] for each in (record(WAVES.samples), given)]
    batch = TASK.finish({"row": np.stack(rows), "segment_ids": np.ones((2, 1), np.int32)}, host_rng(0, "y"))
    assert batch["loss_weights"].tolist() == [1, 0] and batch["unusable"].tolist() == [0, 1]


def heard(length: int = 12) -> tuple[Heard, dict[str, np.ndarray]]:
    """Random outputs of a model for two rows, and their batch."""
    rng = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    chosen = rng.integers(0, 8, (2, length, 2))
    chosen[0, 5] = chosen[0, 7]
    outputs = Heard(
        unit(rng.normal(size=(2, length, 8))), unit(rng.normal(size=(2, length, 8))), chosen,
        np.asarray(jax.nn.softmax(rng.normal(size=(2, length, 2, 8)))), rng.random(2),
    )  # fmt: skip
    hidden = np.array([TASK.hide(length, rng) for _ in range(2)])
    hidden[0, [5, 7]] = True
    others = np.array([TASK.others(row, rng) for row in hidden])
    others[0, 5] = 7
    return outputs, {"hidden": hidden, "distractors": others, "loss_weights": np.ones(2), "unusable": np.zeros(2)}


def test_the_terms_against_loops():
    """In float64. A frame that is told from frames of its own code alone costs nothing."""
    outputs, batch = heard()
    terms, metrics = TASK.loss(jax.tree.map(jnp.asarray, outputs), batch)
    loss = found = 0.0
    for row, place in zip(*np.nonzero(batch["hidden"]), strict=True):
        said, codes = outputs.said_BLJ[row, place], outputs.codes_BLJ[row]
        others = [k for k in batch["distractors"][row, place]
                  if (outputs.chosen_BLG[row, k] != outputs.chosen_BLG[row, place]).any()]  # fmt: skip
        scores = np.array([said @ codes[place], *(said @ codes[k] for k in others)]) / 0.1
        loss += np.log(np.exp(scores).sum()) - scores[0]
        found += (scores[0] > scores[1:]).all()
    assert float(terms["contrastive"].sum) == pytest.approx(loss, rel=1e-5)
    assert float(terms["contrastive"].weight) == batch["hidden"].sum()
    assert float(metrics["accuracy"][0]) == found
    unused = used = 0.0
    for row in range(2):
        mean = outputs.chances_BLGV[row][batch["hidden"][row]].mean(axis=0)
        counts = np.exp(-(mean * np.log(mean)).sum(axis=-1))
        used, unused = used + counts.sum(), unused + (1 - counts / 8).mean()
    assert float(terms["diversity"].sum) == pytest.approx(unused, rel=1e-4)
    assert float(metrics["entries"][0]) == pytest.approx(used, rel=1e-4)
    assert float(terms["penalty"].sum) == pytest.approx(outputs.squares_B.sum(), rel=1e-5)


@pytest.mark.parametrize(
    "make",
    [lambda: MaskedSound(start_rate=0.0), lambda: MaskedSound(span=0), lambda: MaskedSound(diversity=-1.0),
     lambda: Waves(seconds=0.04), lambda: Waves(code_dim=255), lambda: Waves(convolutions=((3, 0),))],
)  # fmt: skip
def test_values_are_checked(make):
    with pytest.raises(UserError, match=r"MaskedSound|Waves"):
        make()


def test_the_paper_s_values():
    task = MaskedSound()
    assert (task.start_rate, task.span, task.distractors, task.temperature) == (0.065, 10, 100, 0.1)
    assert task.waves.channels == 512 and task.waves.codebooks * task.waves.entries == 640

"""Recordings: WAV files of every kind, folders with transcripts, rules with reasons, and what is made here."""

import os
import stat
import sys

import numpy as np
import pytest
from corpora import output_table

from pretrain.core.arrays import from_bytes, to_bytes
from pretrain.core.errors import UserError
from pretrain.core.sound import RATE, BrokenSound, SoundShape, decode, encode, padded, read_wav, resample
from pretrain.curate.formats import find_inputs, read_file
from pretrain.curate.readers import Fields
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.recordings import SoundRules
from pretrain.curate.spoken import tones


def tone(seconds: float, hertz: float = 440.0, rate: int = RATE) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def pcm(samples: np.ndarray) -> np.ndarray:
    return np.round(samples * 32767).astype(np.int16)


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32", "stereo"])
def test_samples_of_every_kind(kind):
    samples = tone(0.05)
    stored = {
        "uint8": lambda: np.round(samples * 127 + 128).astype(np.uint8),
        "int16": lambda: pcm(samples),
        "int32": lambda: np.round(samples * (2**31 - 1)).astype(np.int32),
        "float32": lambda: samples.astype(np.float32),
        "stereo": lambda: pcm(np.stack([2 * samples, 0 * samples], axis=1)),
    }[kind]()
    found = decode(encode(stored))
    assert found.dtype == np.int16 and found.shape == (800,)
    np.testing.assert_allclose(found, pcm(samples), atol=400 if kind == "uint8" else 1)


def test_samples_that_are_no_file():
    np.testing.assert_array_equal(decode(from_bytes(to_bytes(pcm(tone(0.01))))), pcm(tone(0.01)))
    np.testing.assert_array_equal(decode(tone(0.01)), pcm(tone(0.01)))
    for bad in (np.zeros((5, 2), np.int16), np.zeros(5, np.int64)):
        with pytest.raises(BrokenSound, match=r"not int16 or float32 \[samples\]"):
            decode(bad)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100])
def test_other_rates_are_resampled(rate):
    """A tone stays the same tone, and one that is too high for 16 kHz is gone."""
    found = decode(encode(pcm(tone(0.5, rate=rate)), rate)) / 32767
    assert len(found) == RATE // 2
    assert np.abs(found - tone(0.5))[200:-200].max() < 0.01
    if rate > 2 * 10_000:
        assert np.abs(resample(tone(0.5, 10_000, rate), rate))[400:-400].max() < 0.01


def test_damaged_files_are_refused():
    good = encode(pcm(tone(0.1)))
    strange = good[:24] + (2_000_000_011).to_bytes(4, "little") + good[28:]
    for bad in (
        b"",
        b"no sound at all",
        good[:30],
        good[:44],
        good[:-100],
        good[:12],
        strange,
        good[:20] + b"\xff" * 40,
    ):
        with pytest.raises(BrokenSound):
            decode(bad)
    with pytest.raises(BrokenSound, match="no numbers"):
        read_wav(encode(np.array([0.0, np.nan], np.float32)))
    piped = good[:4] + b"\xff" * 4 + good[8:]  # written to a pipe, by a program that did not know how long it gets
    np.testing.assert_array_equal(decode(piped), decode(good))


def test_silence_behind_and_nothing_cut():
    np.testing.assert_array_equal(padded(np.array([1, 2], np.int16), 4), [1, 2, 0, 0])
    for wrong in (np.zeros(0, np.int16), np.zeros(5, np.int16)):
        with pytest.raises(BrokenSound):
            padded(wrong, 4)
    with pytest.raises(UserError, match=r"multiple of 0\.02"):
        SoundShape(seconds=0.05)


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """A folder of recordings, one of each kind of trouble, and what curation makes of it."""
    folder = tmp_path_factory.mktemp("recordings")
    sounds = {
        "good": encode(pcm(tone(0.5))), "deep/good": encode(pcm(tone(0.3, rate=8_000)), 8_000),
        "empty": b"", "zero": encode(np.zeros(0, np.int16)), "short": encode(pcm(tone(0.05))),
        "long": encode(pcm(tone(1.5))), "cut": encode(pcm(tone(0.5)))[:-99], "noise": b"RIFF but no sound",
        "silent": encode(pcm(tone(0.5))), "garbled": encode(pcm(tone(0.5))),
    }  # fmt: skip
    (folder / "raw/deep").mkdir(parents=True)
    for name, sound in sounds.items():
        (folder / f"raw/{name}.wav").write_bytes(sound)
        if name not in ("silent", "garbled"):
            (folder / f"raw/{name}.txt").write_text(f"a {name} one\n")
    (folder / "raw/garbled.txt").write_bytes(b"\xff\xfe\xff")
    (folder / "raw/notes.txt").write_text("of no recording")
    (folder / "raw/other.mp3").write_bytes(b"ID3")
    recipe = Recipe(
        input=f"audio:{folder / 'raw'}", stages=(SoundRules(max_seconds=1.0),), validation_fraction=0.0,
        max_unreadable=0.5,
    )  # fmt: skip
    return folder, curate(recipe, folder / "corpus", workers=1)


def test_every_recording_is_kept_or_counted_with_its_reason(curated):
    folder, sheet = curated
    total = sheet["total"]
    assert total["read"]["documents"] == 10 and total["kept"]["documents"] == 2
    rejected = output_table(folder / "corpus", "rejected")
    name = lambda row: os.path.splitext(os.path.relpath(row["origin"], folder / "raw"))[0]  # noqa: E731
    assert {name(row): row["rule"] for row in rejected} == {
        "empty": "unreadable", "zero": "min_seconds", "short": "min_seconds", "long": "max_seconds",
        "cut": "broken_sound", "noise": "broken_sound", "silent": "no_transcript", "garbled": "broken_transcript",
    }  # fmt: skip
    kept = output_table(folder / "corpus", "documents")
    assert sorted(row["text"] for row in kept) == ["a deep/good one", "a good one"]
    assert sorted(row["metadata"] for row in kept) == ['{"seconds": 0.3}', '{"seconds": 0.5}']
    assert all(decode(dict(row["arrays"])["sound"]).size in (4800, 8000) for row in kept)


def test_files_that_are_no_recordings_are_counted(curated):
    files, ignored = find_inputs(f"audio:{curated[0] / 'raw'}", "s")
    assert len(files) == 10 and ignored == {".txt": 1, ".mp3": 1}
    with pytest.raises(UserError, match=r"no \.wav file"):
        find_inputs(f"audio:{curated[0] / 'raw/*.mp3'}", "s")


def test_large_recordings_are_not_read(curated):
    files, _ = find_inputs(f"audio:{curated[0] / 'raw/good.wav'}", "s")
    (item,) = read_file(files[0], Fields(max_record_bytes=1000))
    assert item.rule == "large_sound"


def records(given: str) -> list:
    files, _ = find_inputs(given, "made")
    return [record for file in files for record in read_file(file, Fields())]


def test_words_of_tones_are_made_from_their_numbers():
    found, again = records("tones:60"), records("tones:60")
    assert [record.arrays for record in found] == [record.arrays for record in again]
    assert len({record.origin for record in found}) == 60 and len({record.text for record in found}) > 40
    lengths = [len(record.text.split()) for record in found]
    assert (min(lengths), max(lengths)) == (1, 6)
    seconds = [len(decode(record.arrays["sound"])) / RATE for record in found]
    assert min(seconds) > 0.3 and max(seconds) < 3, "whatever the pace"
    assert np.corrcoef(lengths, seconds)[0, 1] > 0.9


def test_a_word_sounds_like_itself():
    """Recordings of one word are nearer to that word's than to others', in the power of coarse bands over time."""

    def heard(word: int, seed: int) -> np.ndarray:
        samples = decode(tones(np.array([word]), np.random.default_rng(seed))[0])
        power = np.abs(np.stack([np.fft.rfft(part, 1600) for part in np.array_split(samples, 9)])) ** 2
        bands = np.log(power[:, :300].reshape(9, 15, 20).sum(axis=-1))  # of 200 Hz
        return (bands - bands.mean()).ravel()

    models = [np.mean([heard(word, seed) for seed in range(4)], axis=0) for word in range(10)]
    hits = [np.argmin([np.square(heard(word, seed) - m).sum() for m in models]) == word
            for word in range(10) for seed in (7, 8)]  # fmt: skip
    assert np.mean(hits) >= 0.8, hits


def test_what_cannot_be_made_is_said(monkeypatch):
    with pytest.raises(UserError, match="tones:RECORDINGS"):
        find_inputs("tones:many", "s")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="apt-get install espeak-ng"):
        find_inputs("espeak:5", "s")


STAND_IN = """#!{python}
import sys
arguments = sys.argv[1:]
text = arguments[-1]
if text.startswith("{broken}"):
    sys.exit("no such voice")
open(arguments[arguments.index("-w") + 1], "wb").write(open({sound!r}, "rb").read())
"""


def test_espeak_is_asked_and_its_failures_are_counted(tmp_path, monkeypatch):
    """With a program in its place, so that the test is the same everywhere."""
    (tmp_path / "sound.wav").write_bytes(encode(pcm(tone(0.2, rate=22_050)), 22_050))
    words = [record.text.split()[0] for record in records("tones:4")]
    program = tmp_path / "espeak-ng"
    program.write_text(STAND_IN.format(python=sys.executable, sound=str(tmp_path / "sound.wav"), broken=words[1]))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = records("espeak:4")
    broken = [n for n, word in enumerate(words) if word == words[1]]
    assert [n for n, item in enumerate(found) if hasattr(item, "problem")] == broken
    assert all(len(decode(item.arrays["sound"])) == 3200 for n, item in enumerate(found) if n not in broken)
    assert [item.text.split()[0] for n, item in enumerate(found) if n not in broken] == [
        word for n, word in enumerate(words) if n not in broken
    ]

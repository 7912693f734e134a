"""Recordings with transcripts that are made here: words of gliding tones, and numbers said by espeak-ng.

    tones:600      600 recordings of one to six made-up words. No speech: a word is three glides of a pair of tones, as
                   formants glide in a syllable, always the same; speakers differ in pitch, pace, loudness and noise
    espeak:600     the same sentences, said by espeak-ng where it is installed: a formant synthesizer, in eight voices

A sentence is one to six of the words "zero" to "nine". Each recording follows from its number alone; `sound` is a WAV
file of 16 bits, at 16 kHz for tones, at espeak-ng's own rate for speech. Words of a sentence are in the text.
"""

import itertools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

import numpy as np

from pretrain.core.errors import check
from pretrain.core.rng import host_rng
from pretrain.core.sound import RATE, encode
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import Fields, one_line

TONES, ESPEAK = "tones", "espeak"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LONGEST = 6  # words
UNIT = 50  # recordings made together
BYTES = 48_000  # of a recording, about
GLIDES, GLIDE_SECONDS, PAUSE = 3, 0.09, 0.05  # of a word; seconds of each, and of silence around words
FORMANTS = (250, 900), (1000, 2600)  # Hz that the two tones glide in
VOICES = tuple(f"en-us+{kind}{number}" for kind in "mf" for number in range(1, 5))
TIMEOUT = 30  # seconds for one sentence


def find_parts(format_: str, given: str, source: str) -> list[InputFile]:
    """Units of work for `tones:RECORDINGS` or `espeak:RECORDINGS`.

    Raises:
        UserError: no number, or espeak-ng is asked for and not installed.
    """
    check(
        given.isdigit() and int(given) > 0,
        f"--input={format_}:{given}: write {format_}:RECORDINGS, e.g. {format_}:600",
    )
    check(
        format_ == TONES or shutil.which("espeak-ng") is not None,
        "--input=espeak needs the program espeak-ng: apt-get install espeak-ng, or use tones",
    )
    parts = [(start, min(start + UNIT, int(given))) for start in range(0, int(given), UNIT)]
    return [InputFile(f"{format_}:{start}-{end}", BYTES * (end - start), source, format_) for start, end in parts]


def read_part(file: InputFile, fields: Fields) -> Iterator[Record | Unreadable]:
    """Recordings, each a document."""
    del fields
    format_, _, part = file.path.partition(":")
    for number in range(*map(int, part.split("-"))):
        origin, rng = f"{format_}/{number}", host_rng(0, "spoken", number)
        words = rng.integers(0, len(WORDS), rng.integers(1, LONGEST + 1))
        text = " ".join(WORDS[word] for word in words)
        try:
            sound, about = tones(words, rng) if format_ == TONES else speech(text, rng)
        except (OSError, subprocess.SubprocessError) as error:
            yield Unreadable(origin, one_line(error))
            continue
        yield Record(text, origin, metadata=json.dumps(about), arrays={"sound": sound})


def tones(words: np.ndarray, rng: np.random.Generator) -> tuple[bytes, dict]:
    """A sentence in tones: words are int [n]; the speaker is drawn. A WAV file, and what is to be known of it."""
    pitch, pace, loudness, noise = rng.uniform((0.85, 0.8, 0.3, 0.005), (1.15, 1.25, 0.9, 0.05))
    silence = np.zeros(round(PAUSE * pace * RATE))
    parts = [silence]
    for word in words:
        parts += [_word(int(word), pitch, pace), silence]
    sentence = loudness * np.concatenate(parts)
    sentence += noise * rng.normal(size=len(sentence))
    samples = np.round(np.clip(sentence, -1, 1) * 32767).astype(np.int16)
    return encode(samples), {"pitch": round(pitch, 3), "pace": round(pace, 3), "noise": round(noise, 4)}


def _word(word: int, pitch: float, pace: float) -> np.ndarray:
    """A word, float [samples]: each glide takes two tones from their places to the next ones, and swells in between."""
    places = host_rng(0, "words of tones", word).uniform(*zip(*FORMANTS, strict=True), (GLIDES + 1, 2)) * pitch
    glide = np.linspace(0, 1, round(GLIDE_SECONDS * pace * RATE), endpoint=False)
    hertz = np.concatenate([start + glide[:, None] * (end - start) for start, end in itertools.pairwise(places)])
    phases = 2 * np.pi * np.cumsum(hertz, axis=0) / RATE
    swell = np.tile(0.3 + 0.7 * np.sin(np.pi * glide), GLIDES)
    return swell * (np.sin(phases) @ np.array([0.6, 0.4]))


def speech(text: str, rng: np.random.Generator) -> tuple[bytes, dict]:
    """A sentence said by espeak-ng, in a voice, at a pace and a pitch that are drawn: a WAV file, and these.

    Raises:
        OSError, subprocess.SubprocessError: the program fails.
    """
    voice, pace, pitch = rng.choice(VOICES), int(rng.integers(130, 200)), int(rng.integers(30, 71))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "sound.wav")  # written to a pipe, the file would not know its length
        command = ["espeak-ng", "-v", str(voice), "-s", str(pace), "-p", str(pitch), "-w", path, text]
        subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)
        with open(path, "rb") as file:
            return file.read(), {"voice": str(voice), "words_a_minute": pace, "pitch": pitch}

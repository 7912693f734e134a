"""Films as files: folders of them, what is decoded, what is broken, rules with reasons. The files are made here."""

import io
import sys

import av
import numpy as np
import pytest
from corpora import output_table
from reels import FORMATS, encoded, light

from pretrain.core.arrays import from_bytes, to_bytes
from pretrain.core.errors import UserError
from pretrain.core.films import BrokenFilm, decode, measure
from pretrain.curate.formats import find_inputs, read_file
from pretrain.curate.readers import Fields
from pretrain.curate.recipe import Recipe, curate
from pretrain.curate.recordings import FilmRules
from pretrain.objectives.films import Films


@pytest.mark.parametrize("kind", FORMATS)
def test_some_frames_at_another_size(kind):
    data = encoded(12, kind)
    size = measure(data)
    assert (size.frames, size.height, size.width) == (12, 48, 64) and abs(size.seconds - 1.2) < 0.01
    found = decode(data, 16, 24, first=2, count=3, stride=4)
    assert found.shape == (3, 16, 24, 3) and found.dtype == np.uint8 and light(found) == [2, 6, 10]
    grey = decode(np.frombuffer(data, np.uint8), 16, 24, 1, count=12)
    assert grey.shape == (12, 16, 24, 1) and light(grey) == list(range(12))
    with pytest.raises(BrokenFilm, match="ends after 2 of 3 frames"):
        decode(data, 16, 24, first=2, count=3, stride=8)


def test_what_is_no_film_is_refused(tmp_path):
    good = encoded(5)
    other = tmp_path / "other.mp4"
    other.write_bytes(good)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{other}\n#EXT-X-ENDLIST\n".encode()
    parts = f"ffconcat version 1.0\nfile '{other}'\n".encode()
    sound = io.BytesIO()
    with av.open(sound, "w", format="matroska") as container:
        container.add_stream("pcm_s16le", rate=8000)
    for bad in (b"", b"no film at all", good[:100], playlist, parts, sound.getvalue()):
        with pytest.raises(BrokenFilm):
            measure(bad)
        with pytest.raises(BrokenFilm):
            decode(bad, 8, 8, count=1)


def test_windows_of_files_are_those_of_frames():
    data = np.frombuffer(encoded(12), np.uint8)
    shape = Films(frames=4, stride=2, height=48, width=64, channels=3, patch_size=16)
    frames = decode(data, 48, 64, count=12)
    for seed in range(5):
        of_file, of_frames = (shape.view(each, np.random.default_rng(seed))["frames"] for each in (data, frames))
        np.testing.assert_array_equal(of_file, of_frames)
    np.testing.assert_array_equal(shape.whole(data)["frames"], frames[:7:2])
    with pytest.raises(ValueError, match="ends after"):
        Films(frames=14, height=48, width=64, patch_size=16).view(data, np.random.default_rng(0))


def test_folders_and_rules_with_reasons(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    files = {
        "a.mp4": encoded(6), "deep/b.WEBM": encoded(5, "webm"), "one.mp4": encoded(1), "broken.mov": b"no film",
        "long.mkv": encoded(30, "matroska"), "small.avi": encoded(4, "avi", 16, 64), "notes.md": b"words",
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    (tmp_path / "in" / "a.txt").write_text("a grey wall\n")
    found, ignored = find_inputs(f"video:{tmp_path}/in", "films")
    assert len(found) == 6 and dict(ignored) == {".md": 1}
    by_name = {file.path.rpartition("/")[2]: next(iter(read_file(file, Fields()))) for file in found}
    assert by_name["a.mp4"].text == "a grey wall" and from_bytes(by_name["a.mp4"].arrays["frames"]).ndim == 1
    rules = FilmRules(max_frames=20, min_side=32)
    curate(Recipe(input=f"video:{tmp_path}/in", stages=(rules,), validation_fraction=0.0), tmp_path / "out")
    kept = sorted(row["origin"].rpartition("/")[2] for row in output_table(tmp_path / "out", "documents"))
    assert kept == ["a.mp4", "b.WEBM"]
    rejected = sorted(row["rule"] for row in output_table(tmp_path / "out", "rejected"))
    assert rejected == ["broken_film", "max_frames", "min_frames", "min_side"]


def test_frames_are_films_too():
    rules, none = FilmRules(), {}
    frames = lambda *shape: {"frames": to_bytes(np.zeros(shape, np.uint8))}  # noqa: E731
    assert rules._size(frames(5, 20, 30, 3)) == (5, 20) and rules._size(none)[0] == -2
    assert rules._size(frames(5, 20))[0] == rules._size({"frames": b"\x93NUMPY cut"})[0] == -1


def test_without_pyav_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pretrain\[video\]"):
        measure(b"")


def test_a_folder_without_films_is_told(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    with pytest.raises(UserError, match=r"no \.mp4, \.m4v"):
        find_inputs(f"video:{tmp_path}", "films")

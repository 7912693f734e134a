"""Word vectors: neighbours, analogies, judgements, and files that come back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pretrain.core.errors import UserError
from pretrain.evaluate.word_vectors import WordVectors, load_word_vectors

PLANE = WordVectors(
    ["man", "woman", "king", "queen", "stone"],
    np.array([[1, 0, 0], [1, 1, 0], [1, 0, 2], [1, 1, 2], [-3, 0, 0]], np.float32),
)


def test_neighbours_are_by_cosine_and_never_the_word_itself():
    found = PLANE.most_similar(["king"], count=10)
    assert [word for word, _ in found] == ["queen", "man", "woman", "stone"]
    np.testing.assert_allclose(found[0][1], 5 / np.sqrt(5 * 6), rtol=1e-6)
    assert len(PLANE.most_similar(["King"], count=2)) == 2


def test_analogy():
    assert PLANE.analogy("man", "king", "woman")[0][0] == "queen"


@pytest.mark.parametrize("binary", [False, True])
@settings(max_examples=25, deadline=None)
@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1), unique=True),
    data=st.data(),
)
def test_files_come_back_exactly(tmp_path_factory, binary, words, data):
    shape = (len(words), data.draw(st.integers(1, 5)))
    vectors = data.draw(arrays.arrays(np.float32, shape, elements=st.floats(width=32, allow_nan=False)))
    path = tmp_path_factory.mktemp("vectors") / "file"
    WordVectors(words, vectors).save(path, binary)
    back = load_word_vectors(path, binary)
    assert list(back.words) == words
    np.testing.assert_array_equal(back.vectors, vectors)


def test_the_text_format_is_that_of_word2vec(tmp_path):
    WordVectors(["a", "b"], np.array([[0.5, -1], [2, 0.1]], np.float32)).save(tmp_path / "v.txt")
    assert (tmp_path / "v.txt").read_text() == "2 2\na 0.5 -1.0\nb 2.0 0.1\n"
    WordVectors(["a"], np.array([[0.5, -1]], np.float32)).save(tmp_path / "v.bin")
    assert (tmp_path / "v.bin").read_bytes() == b"1 2\na \x00\x00\x00?\x00\x00\x80\xbf\n"


@pytest.mark.parametrize("content", [b"", b"2 2\na 1 2\n", b"1 2\na 1\n", b"x y\n", b"1 1\na b\n"])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"v\.txt"):
        load_word_vectors(tmp_path / "v.txt")
    (tmp_path / "v.bin").write_bytes(content[:8])
    with pytest.raises(UserError, match=r"v\.bin"):
        load_word_vectors(tmp_path / "v.bin")


def test_judgements(tmp_path):
    file = tmp_path / "judged.tsv"
    file.write_text("# a comment\nKing\tqueen\t9\nking\tstone\t1\nman\twoman\t7\nman\tcloud\t3\n")
    assert PLANE.correlation(file) == {"spearman": pytest.approx(1.0), "pairs": 3, "missing": 1}
    file.write_text("king queen 9\n")
    with pytest.raises(UserError, match=r"judged\.tsv:1"):
        PLANE.correlation(file)


def test_what_cannot_be():
    with pytest.raises(UserError, match="cloud"):
        PLANE.most_similar(["cloud"])
    with pytest.raises(UserError, match="white space"):
        WordVectors(["a b"], np.zeros((1, 2), np.float32)).save("never")
    with pytest.raises(UserError, match="twice"):
        WordVectors(["a", "a"], np.zeros((2, 2), np.float32))
